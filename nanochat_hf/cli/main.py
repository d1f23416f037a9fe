"""The `nanochat-hf` command: one subcommand for each thing to do with text, models and runs.

Each subcommand imports only what it needs, so that `--help` is quick. Training and evaluation run the functions of
`nanochat_hf.stages`, as the scripts in `training/` and `evaluation/` do.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from functools import partial
from itertools import takewhile
from pathlib import Path
from textwrap import shorten
from typing import Any

from nanochat_hf.settings import (
    LAUNCH_FILES,
    MAX_DEPTH,
    MAX_ROWS,
    MAX_TOKENS,
    RECIPES,
    Parser,
    UserError,
    checked,
    find_recipe,
    recipe_names,
    run_main,
)

# Commands that run the stage of the same name.
STAGES = (
    "tokenizer",
    "pretrain",
    "midtrain",
    "sft",
    "dpo",
    "rl",
    "evaluate",
    "make_identity",
    "miniseries",
    "scaling_laws",
)

USAGE = """\
usage: nanochat-hf COMMAND [OPTIONS]

train
  train RECIPE                    text to chat model: all stages of a recipe, evaluation and report
  recipes                         the recipes of the package; recipes NAME prints one
  tokenizer                       one stage: the vocabulary, from text
  pretrain                        one stage: the base model, from text
  midtrain                        one stage: chat format and tasks, from conversations
  sft                             one stage: answers
  dpo                             one stage: pairs of answers, of which one is preferred
  rl                              one stage: rewards
  evaluate                        bits per byte, CORE and chat tasks of a run; evaluate core|chat|... for one
  data shards SOURCE FOLDER       any text as shuffled shards; data show SOURCE says what would be read
  make_identity                   conversations about who the model is, from a file of facts
  miniseries                      one model per depth, compared
  scaling_laws                    FLOP budgets × depths, fitted and drawn

talk to a model
  chat CHECKPOINT                 in the terminal, with the calculator
  chat CHECKPOINT --prompt TEXT   one question, one answer
  serve CHECKPOINT                an OpenAI-compatible server on http://localhost:8000/v1
  chat --url http://HOST:8000     talk to a served model
  space CHECKPOINT                a page in the browser on http://127.0.0.1:7860

prepare and publish
  plan DEPTH                      parameters, memory, hours and dollars of a run, before it starts
  convert SOURCE DESTINATION      upstream's checkpoints to and from Hugging Face format, to transformers' own
                                  NanoChat (classic models) and to ONNX
  report RUN_DIR                  write report.md again, from the results in a run's folder
  report RUN_DIR RUN_DIR …        compare runs, with paired tests
  push CHECKPOINT REPO_ID         publish a checkpoint on the Hugging Face Hub

CHECKPOINT is a folder such as runs/quickstart/rl, or the id of a model on the Hub.

examples
  nanochat-hf train quickstart
  nanochat-hf chat runs/quickstart/rl
  nanochat-hf serve runs/quickstart/rl --port 9000
  nanochat-hf plan 24 --gpus 8 --gpu h100
  nanochat-hf convert ~/.cache/nanochat/chatsft_checkpoints/d24 runs/d24

nanochat-hf COMMAND --help explains a command, nanochat-hf --version prints the version.
"""


def main(argv: list[str] | None = None) -> None:
    """Runs the command line `argv`, by default that of the process. A UserError ends in one line and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    run_main(lambda: run_command(argv))


def run_command(argv: list[str]) -> None:
    """Runs the subcommand that `argv` names first, with the rest as its options.

    Raises:
        UserError: there is no such command, or the command refuses its options.
    """
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


def _stage(module: str, argv: list[str]) -> None:
    importlib.import_module(f"nanochat_hf.stages.{module}").main(argv)


def _recipes(argv: list[str]) -> None:
    parser = Parser(
        prog="nanochat-hf recipes",
        description="Lists the recipes of the package and its files for `accelerate launch`. NAME prints that file.",
        epilog="examples\n"
        "  nanochat-hf recipes\n"
        "  nanochat-hf recipes quickstart > mine.yaml          a copy to change, for nanochat-hf train mine.yaml\n"
        "  nanochat-hf train quickstart                        --config takes the name of a recipe, too\n"
        '  accelerate launch --config_file "$(nanochat-hf recipes --path accelerate_fsdp)" \\\n'
        "      -m nanochat_hf.stages.pretrain --config d26 --tokenizer RUN/tokenizer --output_dir RUN/base",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="a recipe, such as quickstart")
    parser.add_argument("--path", action="store_true", help="print where the file is, not what it says")
    options = parser.parse_args(argv)
    folders = (RECIPES, LAUNCH_FILES)
    if options.name:
        found = [path for folder in folders if (path := find_recipe(options.name, folder)).parent == folder]
        if not found:
            known = ", ".join(name for folder in folders for name in recipe_names(folder))
            raise UserError(f"the package has no recipe {options.name!r}; it has {known}")
        print(found[0] if options.path else found[0].read_text(encoding="utf-8"), end="\n" if options.path else "")
        return
    for title, folder in (("recipes, for nanochat-hf train NAME", RECIPES), ("for accelerate launch", LAUNCH_FILES)):
        print(f"{title} (in {folder})")
        for name in recipe_names(folder):
            print(f"  {name:<18} {_first_sentence((folder / f'{name}.yaml').read_text(encoding='utf-8'))}")


def _first_sentence(text: str) -> str:
    """The first sentence of the comment that a file begins with."""
    comment = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), text.splitlines()))
    return shorten(comment.split(". ")[0].rstrip("."), 100, placeholder=" …")


def _data(argv: list[str]) -> None:
    what, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if what == "shards":
        return _stage("make_shards", rest)
    parser = Parser(
        prog="nanochat-hf data",
        description="Says what training would read from text, or writes the text as shards (shards --help).",
        epilog="examples\n"
        "  nanochat-hf data show my_texts/                  files, documents and splits\n"
        "  nanochat-hf data shards my_texts/ shards/        all documents shuffled, with a validation shard",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("show", "shards"))
    parser.add_argument(
        "source", metavar="SOURCE", nargs="+", help="folder, file, pattern, Hub data set or microworld; several as a:2"
    )
    parser.add_argument("--text_column", metavar="NAME", help="column or key with the text; found if not given")
    parser.add_argument("--on_bad_file", choices=("stop", "skip"), default="stop", help="what to do at a damaged file")
    options = parser.parse_args([what, *rest])

    from nanochat_hf.data.overview import describe_data

    print(describe_data(options.source, text_column=options.text_column, on_bad_file=options.on_bad_file))


def _space(argv: list[str]) -> None:
    from nanochat_hf.page.command import main

    main(argv)


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
    parser = Parser(
        prog="nanochat-hf plan",
        description="Says what pretraining at a depth will need: parameters, tokens, memory, time and money.\n"
        "Settings of nanochat-hf pretrain are spelled as there; dashes work too.",
        epilog="examples\n"
        "  nanochat-hf plan 24 --gpus 8 --gpu h100\n"
        "  nanochat-hf plan 12 --gpus 1 --gpu 'rtx 4090' --device_batch_size 8\n"
        "  nanochat-hf plan --depth 24 --param_data_ratio 8 --fp8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "depth",
        metavar="DEPTH",
        type=checked(int, at_least=1, at_most=MAX_DEPTH),
        help="number of layers (also as --depth 24)",
    )
    parser.add_argument(
        "--gpus",
        metavar="N",
        type=checked(int, at_least=1, at_most=1_000_000),
        default=8,
        help="number of devices (default 8)",
    )
    parser.add_argument("--gpu", metavar="NAME", default="h100", help="such as a100 or 'rtx 4090' (default h100)")
    parser.add_argument(
        "--mfu",
        metavar="SHARE",
        type=checked(float, at_least=0.001, at_most=1),
        help="share of the device's peak FLOP/s (default 0.5, an assumption)",
    )
    parser.add_argument("--fp8", action="store_true", help="matrix products in 8 bits; the loss then holds all logits")
    parser.add_argument("--preset", choices=("modern", "classic"), default="modern", help="architecture")

    def add_pretraining_setting(name: str, **options: Any) -> None:
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", **options)

    add_pretraining_setting(
        "device_batch_size",
        metavar="ROWS",
        type=checked(int, at_least=1, at_most=MAX_ROWS),
        default=16,
        help="rows per device and forward pass (default 16)",
    )
    add_pretraining_setting(
        "vocab_size",
        metavar="TOKENS",
        type=checked(int, at_least=1, at_most=MAX_TOKENS),
        default=32768,
        help="rows of the token tables (default 32768)",
    )
    add_pretraining_setting(
        "param_data_ratio",
        metavar="RATIO",
        type=checked(float, above=0, at_most=1e6),
        help="training tokens per scaling parameter (record run: 8)",
    )
    positional = [word.removeprefix("--depth=") for word in argv if word != "--depth"]
    options = vars(parser.parse_args(positional))

    from nanochat_hf.scaling.plan import plan

    try:
        print(plan(options.pop("depth"), **options))
    except ValueError as error:
        raise UserError(str(error)) from None


def _convert(argv: list[str]) -> None:
    parser = Parser(
        prog="nanochat-hf convert",
        description="Converts a checkpoint folder without changing a bit of its weights: between upstream nanochat's\n"
        "format (both architectures), this project's, and transformers' own NanoChat (classic architecture only).\n"
        "The last loads anywhere without remote code. ONNX can be written, but not read.",
        epilog="examples\n"
        "  nanochat-hf convert ~/.cache/nanochat/base_checkpoints/d24 runs/d24     upstream's to Hugging Face's\n"
        "  nanochat-hf convert runs/d24 exported --to upstream --step 5568         and back\n"
        "  nanochat-hf convert runs/classic plain --to transformers                for servers without remote code\n"
        "  nanochat-hf convert runs/d24 d24-onnx --to onnx                         one graph, without a KV cache",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="folder to read; its format is detected")
    parser.add_argument("destination", metavar="DESTINATION", help="folder to write; empty or new")
    parser.add_argument(
        "--to",
        metavar="FORM",
        default="nanochat-hf",
        help="format to write: nanochat-hf (default), upstream, transformers or onnx",
    )
    parser.add_argument(
        "--tokenizer", metavar="FOLDER", help="folder of the tokenizer (default: found in or beside the source)"
    )
    parser.add_argument(
        "--step",
        metavar="N",
        type=checked(int, at_least=0),
        help="number of model_N.pt to read (default: the last) or to write (default: 0)",
    )
    options = parser.parse_args(argv)

    from nanochat_hf.conversion import convert_folder

    print(convert_folder(**vars(options)))


def _report(argv: list[str]) -> None:
    parser = Parser(
        prog="nanochat-hf report",
        description="Writes report.md of a run again, from the results in its folder, and prints its table.\n"
        "With several runs: compares their stages with the first run's, item by item, and prints the tables.",
        epilog="examples\n"
        "  nanochat-hf report runs/quickstart\n"
        "  nanochat-hf report runs/d12 runs/d12-wider --output comparison.md\n"
        "  nanochat-hf report runs/d12 --title 'Depth 12 on our own text'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", help="folder of a run, such as runs/quickstart")
    parser.add_argument("--title", help="heading of the report of a single run")
    parser.add_argument("--output", metavar="FILE", help="also writes the comparison of several runs, as Markdown")
    options = parser.parse_args(argv)

    from nanochat_hf.report import compare_runs, write_report

    if len(options.run_dirs) == 1:
        if options.output:
            raise UserError("--output is for a comparison of several runs; the report of one run is its report.md")
        path, table = write_report(options.run_dirs[0], options.title)
        print(f"{table}\n\n{path}")
        return
    if options.title:
        raise UserError("--title is for the report of a single run")
    page, text = compare_runs(options.run_dirs)
    print(text)
    if options.output:
        try:
            Path(options.output).write_text(page, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {options.output} ({error.strerror}); give another --output") from None
        print(f"\n{options.output}")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": partial(_stage, "speedrun"),
    "recipes": _recipes,
    **{name: partial(_stage, name) for name in STAGES},
    "data": _data,
    "chat": _chat,
    "serve": _serve,
    "space": _space,
    "plan": _plan,
    "convert": _convert,
    "report": _report,
    "push": _push,
}

if __name__ == "__main__":
    main()
