"""The whole pipeline: text → tokenizer → base → mid → SFT → RL → evaluation → report → chat.

    nanochat-hf train quickstart                           # 2 CPU cores, 12 to 35 minutes
    nanochat-hf train my_recipe.yaml --run_dir runs/mine   # `nanochat-hf recipes quickstart` prints one to start from
    nanochat-hf train speedrun                             # 8×H100, GPT-2's CORE
    nanochat-hf train local --set text=DIR                 # your own text, 2 CPU cores
    nanochat-hf train overnight --set text=DIR chat=FILE   # the same for a night, with your own chats

Each stage is a process of its own and writes a checkpoint folder. Finished stages are skipped: run the same command
again after an interruption. The recipe's section with the stage's name holds its settings.
"""

import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat_hf import settings
from nanochat_hf.settings import LAUNCH_FILES, StageHelp, UserError, find_recipe, folder_lock, setting
from nanochat_hf.stages.run_checks import (
    check_core_bundle,
    check_packages,
    check_recipe,
    check_unchanged,
    check_variables,
    recipe_words,
    unfinished,
)
from nanochat_hf.stages.stage_list import STAGES, Stage


@dataclass
class SpeedrunConfig:
    run_dir: str = setting("runs/quickstart", "folder that receives a subfolder for each stage", path=True)
    stages: list[str] = setting(
        [stage.name for stage in STAGES if stage.name != "dpo"],
        "training stages to run, in the pipeline's order",
        choices=settings.STAGE_FOLDERS,
    )
    accelerate_config: str | None = setting(
        None,
        "file for `accelerate launch`, or its name in the package; default: every stage is one process",
        path=True,
    )
    first_words: list[str] = setting(["Hello! Who are you?"], "questions for the finished model")
    fresh: bool = setting(False, "delete the run folder and start over")


HELP = StageHelp("train", __doc__, "run_dir stages accelerate_config first_words fresh")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line `argv`, by default that of the process. Its first word may be the recipe."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-"):
        argv = ["--config", *argv]
    config = settings.parse_stage("speedrun", SpeedrunConfig, argv, HELP)
    recipe, variables, _ = settings.take_recipe_options(argv)
    recipe_options = recipe_words(recipe, variables)
    run_dir = Path(config.run_dir)
    stages = [stage for stage in STAGES if stage.name in config.stages]
    check_stages(config, stages)
    check_packages()
    settings.check_output_dir(run_dir, unfinished=False, option="--run_dir")
    check_variables(recipe, variables)
    to_train = stages if config.fresh else unfinished(run_dir, stages)
    check_recipe(recipe, variables, to_train)
    check_core_bundle(recipe, variables)
    folder_lock.claim(run_dir, "--run_dir")
    if config.fresh:
        delete_run(run_dir)
    for stage in stages:
        if settings.load_run(run_dir / stage.folder):
            check_unchanged(run_dir / stage.folder, stage, recipe, variables)

    started = time.time()
    for number, stage in enumerate(stages, start=1):
        folder = run_dir / stage.folder
        title = f"[{number}/{len(stages) + 1}] {stage.name} → {folder}"
        if settings.load_run(folder):
            print(f"{title}: finished already", flush=True)
        else:
            print(f"\n{title}", flush=True)
            command = launcher(config, stage) + ["-m", stage.module, *recipe_options, "--output_dir", str(folder)]
            if stage.takes:
                command += [f"--{stage.takes}", str(predecessor(run_dir, stage))]
            run(command, title=stage.name)
            delete_checkpoints(folder)

    print(f"\n[{len(stages) + 1}/{len(stages) + 1}] evaluation and report → {run_dir}", flush=True)
    for title in ("evaluate", "report"):
        command = [sys.executable, "-m", f"nanochat_hf.stages.{title}", *recipe_options, "--run_dir", str(run_dir)]
        run(command, title)
    ask_first_questions(config, run_dir / stages[-1].folder)
    print_summary(run_dir, run_dir / stages[-1].folder, time.time() - started)


def check_stages(config: SpeedrunConfig, stages: list[Stage]) -> None:
    if not stages:
        raise UserError(f"--stages names no stage; give some of {', '.join(stage.name for stage in STAGES)}")
    if config.fresh and stages[0].takes:
        raise UserError(
            f"--fresh deletes {config.run_dir}, and {stages[0].name} needs what is in it; add the stages before it to "
            "--stages, or leave --fresh out"
        )
    if config.accelerate_config:
        path = find_recipe(config.accelerate_config, LAUNCH_FILES)
        if not path.is_file():
            raise UserError(
                f"there is no file {config.accelerate_config}; --accelerate_config takes one for accelerate"
            )
        config.accelerate_config = str(path)


def predecessor(run_dir: Path, stage: Stage) -> Path:
    """The folder a stage starts from: the tokenizer's, or that of the last finished stage before it."""
    before = [
        one for one in STAGES[: STAGES.index(stage)] if (one.name == "tokenizer") == (stage.takes == "tokenizer")
    ]
    finished = [one for one in before if settings.load_run(run_dir / one.folder)]
    if not finished:
        names = " or ".join(one.name for one in before)
        raise UserError(f"{stage.name} needs a finished {names} stage in {run_dir}; add it to --stages")
    return run_dir / finished[-1].folder


def launcher(config: SpeedrunConfig, stage: Stage) -> list[str]:
    if not config.accelerate_config or not stage.distributed:
        return [sys.executable]
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config.accelerate_config]


def run(command: list[str], title: str) -> None:
    """Runs one stage in the foreground; its failure ends the pipeline."""
    status = settings.run_command(command, title)
    if status:
        raise UserError(
            f"{title} stopped with exit status {status} (see above); run the same command again to continue"
        )


def delete_checkpoints(folder: Path) -> None:
    """Deletes the checkpoints to resume from: a finished stage keeps only its model."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def delete_run(run_dir: Path) -> None:
    names = {stage.folder for stage in STAGES} | {"report.md", "plots", folder_lock.LOCK_FILE}
    unknown = sorted(path.name for path in run_dir.iterdir() if path.name not in names)
    if unknown:
        raise UserError(
            f"{run_dir} holds {unknown[0]}, which no stage made; move it away or delete the folder yourself"
        )
    for stage in STAGES:  # none of them may be running
        if (run_dir / stage.folder).is_dir():
            folder_lock.claim(run_dir / stage.folder, "--run_dir")
    for path in run_dir.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != folder_lock.LOCK_FILE:  # this command holds it
            path.unlink()


def ask_first_questions(config: SpeedrunConfig, checkpoint: Path) -> None:
    for words in config.first_words:
        print(f"\nYou: {words}", flush=True)
        run([sys.executable, "-m", "nanochat_hf.cli", "chat", str(checkpoint), "--prompt", words], title="chat")


def print_summary(run_dir: Path, checkpoint: Path, seconds: float) -> None:
    print(f"\nDone in {seconds / 60:.1f} minutes.")
    made = [str(run_dir / stage.folder) for stage in STAGES if settings.load_run(run_dir / stage.folder)]
    print(f"  report       {run_dir / 'report.md'}")
    print(f"  checkpoints  {shlex.join(made)}")
    program = str(Path(sys.executable).parent / "nanochat-hf")
    print(f"  talk to it   {shlex.join([program, 'chat', str(checkpoint)])}")
    print(f"  in a browser {shlex.join([program, 'space', str(checkpoint)])}")


if __name__ == "__main__":
    settings.run_main(main)
