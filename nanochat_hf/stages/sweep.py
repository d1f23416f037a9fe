"""What `nanochat-hf miniseries` and `scaling_laws` share: pretraining several models and comparing them."""

import argparse
import filecmp
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import dropwhile
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
        UserError: an option is unknown or has a value that it cannot have, or one of `own`, or one with which
            pretraining trains nothing, follows after `--`.
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
        if name in ("h", "help", "help_all", "dry_run") and word.startswith("-"):
            raise UserError(f"{word} after -- trains nothing; give it to {program('pretrain')}")
    settings.check_output_dir(options.run_dir, unfinished=False, option="--run_dir")
    if options.accelerate_config and not find_recipe(options.accelerate_config, LAUNCH_FILES).is_file():
        raise UserError(f"there is no file {options.accelerate_config}; --accelerate_config takes one for accelerate")
    return options, passed


def _folder(word: str) -> Path:
    return Path(word).expanduser()


def train_models(models: Mapping[str, list[str]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Pretrains the models that are not finished; returns the `run.json` of each.

    Args:
        models: folder in `options.run_dir` → arguments of pretraining. All have the preset "modern", where they name
            no other: "auto" would train the small models of a sweep by another rule than the large ones.
        options: what `parse_sweep_arguments` has returned.

    Raises:
        UserError: an argument is wrong, a finished model has other settings or data, or pretraining has failed.
    """
    commands = {}
    for name, arguments in models.items():
        folder = options.run_dir / name
        words = ["--tokenizer", options.tokenizer, "--output_dir", str(folder), "--preset", "modern", *arguments]
        check_finished(folder, words)
        commands[folder] = words
    runs = []
    for number, (folder, words) in enumerate(commands.items(), start=1):
        print(f"\n[{number}/{len(commands)}] {folder.name}", flush=True)
        runs.append(settings.load_run(folder) or train_one_model(folder, options, words))
    return runs


def check_finished(folder: Path, words: list[str]) -> None:
    """Checks that a model could be trained, and where it is finished, that it was trained in the same way.

    Models of other settings or data do not compare.

    Args:
        words: the arguments of pretraining.

    Raises:
        UserError: an argument is wrong, or a setting, the tokenizer or the data was another.
    """
    from nanochat_hf.stages.pretrain import PretrainConfig
    from nanochat_hf.stages.run_checks import changed_data

    now = asdict(settings.parse_stage("pretrain", PretrainConfig, words))
    run = settings.load_run(folder)
    if run is None:
        return
    from nanochat_hf.trainers.pretraining_setup import CHANGES_NUMBERS, MAY_CHANGE

    remedy = "delete that folder, or give another --run_dir"
    command = dropwhile(lambda word: not word.startswith("--"), run["environment"]["command"])
    try:
        before = asdict(settings.parse_stage("pretrain", PretrainConfig, list(command)))
    except UserError as error:
        raise UserError(f"the settings of {folder} cannot be read again ({error}); {remedy}") from None
    alike = MAY_CHANGE - CHANGES_NUMBERS | {"attention", "compile", "resume", "tokenizer"}
    alike |= {"data"} if "fingerprint" in run else set()  # compared by content, as the tokenizer is
    changed = [name for name in now if now[name] != before[name] and name not in alike]
    tokenizers = [Path(place, "tokenizer.json") for place in (folder, now["tokenizer"])]
    if all(path.exists() for path in tokenizers) and not filecmp.cmp(*tokenizers, shallow=False):
        changed.append("tokenizer")
    if changed:
        values = f" ({before[changed[0]]}, not {now[changed[0]]})" if len(changed) == 1 else ""
        raise UserError(f"{folder} was trained with another {', '.join(changed)}{values}; {remedy}")
    if difference := changed_data(run, before, now):
        raise UserError(f"{difference} since {folder} was trained; put the data back as it was, {remedy}")


def train_one_model(folder: Path, options: argparse.Namespace, words: list[str]) -> dict[str, Any]:
    """Pretrains in a process of its own, or goes on with it; returns its `run.json`.

    Args:
        folder: receives the model.
        options: what `parse_sweep_arguments` has returned.
        words: the arguments of pretraining.

    Raises:
        UserError: pretraining has failed.
    """
    launcher = [sys.executable]
    if options.accelerate_config:
        config_file = find_recipe(options.accelerate_config, LAUNCH_FILES)
        launcher += ["-m", "accelerate.commands.launch", "--config_file", str(config_file)]
    status = settings.run_command([*launcher, "-m", PRETRAIN, *words], title=str(folder))
    run = settings.load_run(folder)
    if status or run is None:
        raise UserError(
            f"{folder} stopped with exit status {status} (see above); mend what is said there, and run the same "
            "command again to continue"
        )
    return run


def summarize_run(run: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers of a `run.json` that tables and plots compare.

    They are `depth`, `params` (the scaling parameters), `tokens`, and where measured `flops`, `loss` (nats per token),
    `val_bpb` (bits per byte) and `core`.
    """
    dial, metrics = run["dial"], run["metrics"]
    numbers = {"depth": dial["depth"], "params": dial["scaling_params"], "tokens": metrics["tokens"]}
    return numbers | {name: metrics[name] for name in ("flops", "loss", "val_bpb", "core") if name in metrics}
