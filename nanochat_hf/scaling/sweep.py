"""What training/miniseries.py and training/scaling_laws.py share: pretraining several models and comparing them."""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from nanochat_hf import settings
from nanochat_hf.settings import UserError


def parse_sweep_arguments(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """Parses the command line of a sweep.

    Args:
        parser: has the sweep's own options; those of every sweep are added here.

    Returns:
        The options, and the arguments after `--`, which are for the training script.
    """
    parser.add_argument("--tokenizer", required=True, help="tokenizer folder, made by training/tokenizer.py")
    parser.add_argument("--accelerate_config", help="file for `accelerate launch`; default: one plain process")
    argv, script_arguments = sys.argv[1:], []
    if "--" in argv:
        argv, script_arguments = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    return parser.parse_args(argv), script_arguments


def train_one_model(
    script: Path, output_dir: Path, options: argparse.Namespace, script_arguments: list[str]
) -> dict[str, Any]:
    """Runs the training script in a process of its own, unless its model is finished; returns its `run.json`.

    Args:
        script: the training script.
        output_dir: folder that receives the model.
        options: what `parse_sweep_arguments` has returned.
        script_arguments: further arguments of the script.

    Raises:
        UserError: the script has failed.
    """
    run = settings.load_run(output_dir)
    if run is not None:
        return run
    launcher = [sys.executable]
    if options.accelerate_config:
        launcher += ["-m", "accelerate.commands.launch", "--config_file", options.accelerate_config]
    command = [*launcher, str(script), "--tokenizer", options.tokenizer, "--output_dir", str(output_dir)]
    status = subprocess.run([*command, *script_arguments]).returncode
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
