"""What the sweeps of training/miniseries.py and training/scaling_laws.py share: many runs of one script, compared."""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from nanochat_hf import settings
from nanochat_hf.settings import UserError


def parse_sweep(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """Adds the options of every sweep; returns them and what stands behind `--`, for the training script."""
    parser.add_argument("--tokenizer", required=True, help="tokenizer folder, made by training/tokenizer.py")
    parser.add_argument("--accelerate_config", help="file for `accelerate launch`; default: one plain process")
    argv, passed = sys.argv[1:], []
    if "--" in argv:
        argv, passed = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    return parser.parse_args(argv), passed


def train(script: Path, folder: Path, options: argparse.Namespace, settings_of_run: list[str]) -> dict[str, Any]:
    """Trains one model unless it is finished; returns its `run.json`."""
    run = settings.load_run(folder)
    if run is None:
        launcher = [sys.executable]
        if options.accelerate_config:
            launcher += ["-m", "accelerate.commands.launch", "--config_file", options.accelerate_config]
        command = [*launcher, str(script), "--tokenizer", options.tokenizer, "--output_dir", str(folder)]
        status = subprocess.run([*command, *settings_of_run]).returncode
        if status:
            raise UserError(
                f"{folder} stopped with exit status {status} (see above); the same command goes on with it"
            )
        run = settings.load_run(folder)
    return run


def row(run: dict[str, Any]) -> dict[str, float]:
    """What tables and plots need of a run."""
    dial, metrics = run["dial"], run["metrics"]
    facts = {"depth": dial["depth"], "params": dial["scaling_params"], "tokens": metrics["tokens"]}
    return facts | {name: metrics[name] for name in ("flops", "loss", "val_bpb", "core") if name in metrics}
