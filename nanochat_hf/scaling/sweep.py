"""What `nanochat-hf miniseries` and `scaling_laws` share: pretraining several models and comparing them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat_hf import settings
from nanochat_hf.settings import LAUNCH_FILES, Parser, UserError, find_recipe, program

PRETRAIN = "nanochat_hf.stages.pretrain"  # what `python -m` runs
# Options that are lists of numbers: type, and the values that are allowed.
LISTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "depths": (list[int], {"at_least": 1, "at_most": 1024, "commas": True}),
    "budgets": (list[float], {"above": 0, "at_most": 1e30, "commas": True}),
}


def sweep_parser(command: str, text: str | None) -> Parser:
    """Returns the parser of a sweep that has no options yet; its runs go into `runs/` and the name of the command.

    Args:
        command: its subcommand of `nanochat-hf`.
        text: what it does, with commands to paste that begin with `nanochat-hf` and `command`.
    """
    called = program(command)
    text = (text or "").replace(f"nanochat-hf {command} ", f"{called} ")
    parser = Parser(prog=called, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(run_dir=Path("runs", command))
    return parser


def parse_sweep_arguments(
    parser: Parser, argv: Sequence[str] | None = None, own: Sequence[str] = ("depth",)
) -> tuple[argparse.Namespace, list[str]]:
    """Parses the command line of a sweep.

    Args:
        parser: has the sweep's own options; those of every sweep are added here.
        argv: command line without the program's name; default `sys.argv[1:]`.
        own: the options of pretraining that the sweep sets itself.

    Returns:
        The options, with lists of numbers in rising order, and the arguments after `--`, which are for pretraining.

    Raises:
        UserError: an option is unknown or has a value that it cannot have, or one of `own` follows after `--`.
    """
    parser.add_argument("--depths", nargs="+", default=[8, 10, 12, 14, 16, 18, 20], help="numbers of layers")
    parser.add_argument("--run_dir", type=_folder, help="receives one folder per model")
    parser.add_argument("--tokenizer", required=True, help="tokenizer folder, made by the stage tokenizer")
    parser.add_argument("--accelerate_config", help="file for `accelerate launch`; default: one plain process")
    argv, passed = list(sys.argv[1:] if argv is None else argv), []
    if "--" in argv:
        argv, passed = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    options = parser.parse_args(argv)
    for name, (kind, rules) in LISTS.items():
        if hasattr(options, name):
            values = settings.convert(getattr(options, name), kind, rules, f"--{name}")
            setattr(options, name, sorted(set(values)))
    for word in passed:
        name = word.split("=")[0].lstrip("-").replace("-", "_")
        if word.startswith("--") and name in ("output_dir", "tokenizer", *own):
            raise UserError(f"--{name} after -- is set by the sweep itself; remove it there")
    settings.check_output_dir(options.run_dir, unfinished=False)
    if options.accelerate_config and not find_recipe(options.accelerate_config, LAUNCH_FILES).is_file():
        raise UserError(f"there is no file {options.accelerate_config}; --accelerate_config takes one for accelerate")
    return options, passed


def _folder(word: str) -> Path:
    return Path(word).expanduser()


def train_one_model(output_dir: Path, options: argparse.Namespace, passed: list[str]) -> dict[str, Any]:
    """Pretrains in a process of its own, unless the model is finished; returns its `run.json`.

    Args:
        output_dir: folder that receives the model.
        options: what `parse_sweep_arguments` has returned.
        passed: further arguments of pretraining. All models have the preset "modern", where they name no other.

    Raises:
        UserError: pretraining has failed.
    """
    run = settings.load_run(output_dir)
    if run is not None:
        return run
    launcher = [sys.executable]
    if options.accelerate_config:
        config_file = find_recipe(options.accelerate_config, LAUNCH_FILES)
        launcher += ["-m", "accelerate.commands.launch", "--config_file", str(config_file)]
    command = [*launcher, "-m", PRETRAIN, "--tokenizer", options.tokenizer, "--output_dir", str(output_dir)]
    # The preset "auto" would train the small models of a sweep by another rule than the large ones.
    status = settings.run_command([*command, "--preset", "modern", *passed], title=str(output_dir))
    run = settings.load_run(output_dir)
    if status or run is None:
        raise UserError(f"{output_dir} stopped with exit status {status} (see above); the same command continues it")
    return run


def summarize_run(run: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers of a `run.json` that tables and plots compare.

    They are `depth`, `params` (the scaling parameters), `tokens`, and where measured `flops`, `loss` (nats per token),
    `val_bpb` (bits per byte) and `core`.
    """
    dial, metrics = run["dial"], run["metrics"]
    numbers = {"depth": dial["depth"], "params": dial["scaling_params"], "tokens": metrics["tokens"]}
    return numbers | {name: metrics[name] for name in ("flops", "loss", "val_bpb", "core") if name in metrics}
