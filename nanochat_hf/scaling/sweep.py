"""What `nanochat-hf miniseries` and `scaling_laws` share: pretraining several models and comparing them."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat_hf import settings
from nanochat_hf.settings import LAUNCH_FILES, Parser, UserError, find_recipe, program

PRETRAIN = "nanochat_hf.stages.pretrain"  # what `python -m` runs


def sweep_parser(command: str, text: str | None) -> Parser:
    """Returns the parser of a sweep that has no options yet.

    Args:
        command: its subcommand of `nanochat-hf`.
        text: what it does, with commands to paste that begin with `nanochat-hf` and `command`.
    """
    called = program(command)
    text = (text or "").replace(f"nanochat-hf {command} ", f"{called} ")
    return Parser(prog=called, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def parse_sweep_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """Parses the command line of a sweep.

    Args:
        parser: has the sweep's own options; those of every sweep are added here.
        argv: command line without the program's name; default `sys.argv[1:]`.

    Returns:
        The options, and the arguments after `--`, which are for pretraining.
    """
    parser.add_argument("--tokenizer", required=True, help="tokenizer folder, made by the stage tokenizer")
    parser.add_argument("--accelerate_config", help="file for `accelerate launch`; default: one plain process")
    argv, passed = list(sys.argv[1:] if argv is None else argv), []
    if "--" in argv:
        argv, passed = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    return parser.parse_args(argv), passed


def train_one_model(output_dir: Path, options: argparse.Namespace, passed: list[str]) -> dict[str, Any]:
    """Pretrains in a process of its own, unless the model is finished; returns its `run.json`.

    Args:
        output_dir: folder that receives the model.
        options: what `parse_sweep_arguments` has returned.
        passed: further arguments of pretraining.

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
    status = subprocess.run([*command, *passed]).returncode
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
