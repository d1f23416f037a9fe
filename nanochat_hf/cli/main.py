"""The `nanochat-hf` command: a short word for each thing one does with a checkpoint.

Each command imports what it needs and nothing else. Training and evaluation are scripts of their own, in `training/`
and `evaluation/`.
"""

import argparse
import sys
from collections.abc import Callable

from nanochat_hf.settings import UserError, run_main

USAGE = """\
usage: nanochat-hf COMMAND [OPTIONS]        (nanochat-hf COMMAND --help explains a command)

talk
  chat CHECKPOINT               talk to a model in the terminal, with the calculator
  chat CHECKPOINT --prompt TEXT one question, one answer
  serve CHECKPOINT              an OpenAI-compatible server on http://localhost:8000/v1
  chat --url http://HOST:8000   talk to a served model

prepare and publish
  plan DEPTH                    parameters, memory, hours and dollars of a run before it is started
  convert SOURCE DESTINATION    upstream's checkpoints to and from Hugging Face format, to transformers' own
                                NanoChat (classic models) and to ONNX
  report RUN_DIR                write report.md again from what a run has left behind
  push CHECKPOINT REPO_ID       publish a checkpoint on the Hugging Face Hub

CHECKPOINT is a folder such as runs/quickstart/rl, or the id of a model on the Hub.

examples
  nanochat-hf chat runs/quickstart/rl
  nanochat-hf plan 24 --gpus 8 --gpu h100
  nanochat-hf serve runs/quickstart/rl --port 9000
  nanochat-hf convert ~/.cache/nanochat/chatsft_checkpoints/d24 runs/d24
"""


def main(argv: list[str] | None = None) -> None:
    """Runs the command line `argv` (default: the process's own)."""
    argv = sys.argv[1:] if argv is None else argv
    run_main(lambda: dispatch(argv))


def dispatch(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    if argv[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(version("nanochat-hf"))
        return
    command = COMMANDS.get(argv[0])
    if command is None:
        raise UserError(f"there is no command {argv[0]!r}; the commands are {', '.join(COMMANDS)}")
    command(argv[1:])


def _chat(argv: list[str]) -> None:
    from nanochat_hf.cli import terminal_chat

    terminal_chat.main(argv)


def _serve(argv: list[str]) -> None:
    from nanochat_hf.serving import command

    command.main(argv)


def _push(argv: list[str]) -> None:
    from nanochat_hf import hub

    hub.main(argv)


def _plan(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="nanochat-hf plan",
        description="What pretraining at a depth will need: parameters, tokens, memory, time and money.",
    )
    parser.add_argument("depth", type=int, help="number of layers: the one dial (also as --depth 24)")
    parser.add_argument("--gpus", type=int, default=8, help="number of devices (default 8)")
    parser.add_argument("--gpu", default="h100", help="kind of device, such as a100 or 'rtx 4090' (default h100)")
    parser.add_argument("--mfu", type=float, default=0.5, help="share of the peak that is reached (default 0.5)")
    parser.add_argument("--device-batch-size", type=int, default=16, help="rows a device takes at once (default 16)")
    parser.add_argument("--fp8", action="store_true", help="matrix products in 8 bits: the loss then holds all logits")
    parser.add_argument("--preset", choices=("modern", "classic"), default="modern", help="architecture")
    parser.add_argument("--vocab-size", type=int, default=32768, help="rows of the token tables (default 32768)")
    ratio = ("--param_data_ratio", "--param-data-ratio")
    parser.add_argument(*ratio, type=float, help="tokens per scaling parameter (record run: 8)")
    named = [word.removeprefix("--depth=") for word in argv if word != "--depth"]  # as training/pretrain.py has it
    options = vars(parser.parse_args(named))

    from nanochat_hf.scaling.plan import plan

    try:
        print(plan(options.pop("depth"), **options))
    except ValueError as error:
        raise UserError(str(error)) from None


def _convert(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="nanochat-hf convert",
        description="Converts a checkpoint folder, bit by bit: upstream nanochat's of either era, this package's and\n"
        "(classic architecture only) transformers' own NanoChat, which loads anywhere without remote code.",
        epilog="examples\n"
        "  nanochat-hf convert ~/.cache/nanochat/base_checkpoints/d24 runs/d24     upstream's to Hugging Face's\n"
        "  nanochat-hf convert runs/d24 exported --to upstream --step 5568         and back\n"
        "  nanochat-hf convert runs/classic plain --to transformers                for servers without custom code\n"
        "  nanochat-hf convert runs/d24 d24-onnx --to onnx                         one graph, without a cache",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="folder to read; its form is recognised")
    parser.add_argument("destination", help="folder to write; must be empty or new")
    parser.add_argument("--to", choices=("nanochat-hf", "upstream", "transformers", "onnx"), default="nanochat-hf")
    parser.add_argument("--tokenizer", help="folder of the tokenizer; default: looked for in and beside the source")
    parser.add_argument("--step", type=int, help="which model_STEP.pt to read (default the last), or to write (0)")
    options = parser.parse_args(argv)

    from nanochat_hf.conversion import convert_folder

    print(convert_folder(**vars(options)))


def _report(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="nanochat-hf report", description="Writes report.md of a run again and prints its table."
    )
    parser.add_argument("run_dir", help="folder that holds the stages, such as runs/quickstart")
    parser.add_argument("--title", help="heading of the report")
    options = parser.parse_args(argv)

    from nanochat_hf.report import write_report

    path, table = write_report(options.run_dir, options.title)
    print(f"{table}\n\n{path}")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "chat": _chat,
    "serve": _serve,
    "plan": _plan,
    "convert": _convert,
    "report": _report,
    "push": _push,
}

if __name__ == "__main__":
    main()
