"""The whole pipeline: text → tokenizer → base → mid → SFT → RL → evaluation → report → chat.

    nanochat-hf train quickstart                           # 2 CPU cores, 12 to 35 minutes
    nanochat-hf train my_recipe.yaml --run_dir runs/mine   # `nanochat-hf recipes quickstart` prints one to start from
    nanochat-hf train speedrun                             # 8×H100, GPT-2's CORE
    nanochat-hf train local --set text=DIR                 # your own text, 2 CPU cores
    nanochat-hf train overnight --set text=DIR chat=FILE   # the same for a night, with your own chats

Each stage is a process of its own and writes a checkpoint folder. Finished stages are skipped: run the same command
again after an interruption. The recipe's section with the stage's name holds its settings.
"""

import contextlib
import importlib
import importlib.util
import io
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nanochat_hf import settings
from nanochat_hf.settings import LAUNCH_FILES, StageHelp, UserError, find_recipe, folder_lock, setting

CONFIGS = {
    "tokenizer": "TokenizerConfig",
    "pretrain": "PretrainConfig",
    "midtrain": "MidtrainConfig",
    "sft": "SFTStageConfig",
    "dpo": "DPOStageConfig",
    "rl": "RLConfig",
}
PACKAGES = ("accelerate", "datasets", "pyarrow", "trl")  # what an install without the extra `train` lacks


@dataclass(frozen=True)
class Stage:
    """One stage: it reads the recipe's section `name`, writes `folder`, and starts from an earlier stage's folder."""

    name: str
    folder: str

    @property
    def module(self) -> str:
        """What `python -m` and `accelerate launch -m` run."""
        return f"nanochat_hf.stages.{self.name}"

    @property
    def takes(self) -> str | None:
        """The option that names the earlier stage's folder."""
        return {"tokenizer": None, "pretrain": "tokenizer"}.get(self.name, "model")

    @property
    def config_class(self) -> Any:
        """The dataclass of its settings."""
        return getattr(importlib.import_module(self.module), CONFIGS[self.name])

    @property
    def distributed(self) -> bool:
        return self.name != "tokenizer"


STAGES = tuple(Stage(name, folder) for name, folder in settings.STAGE_FOLDERS.items())


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
    recipe_options = ["--config", recipe] if recipe else []
    if variables:
        recipe_options += ["--set", *(f"{name}={value}" for name, value in variables.items())]
    run_dir = Path(config.run_dir)
    stages = [stage for stage in STAGES if stage.name in config.stages]
    check_stages(config, stages)
    if config.fresh and stages[0].takes:
        raise UserError(
            f"--fresh deletes {run_dir}, and {stages[0].name} needs what is in it; add the stages before it to "
            "--stages, or leave --fresh out"
        )
    check_packages()
    settings.check_output_dir(run_dir, unfinished=False)
    check_variables(recipe, variables)
    to_train = stages if config.fresh else unfinished(run_dir, stages)
    check_recipe(recipe_options, to_train)
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
    if config.accelerate_config:
        path = find_recipe(config.accelerate_config, LAUNCH_FILES)
        if not path.is_file():
            raise UserError(
                f"there is no file {config.accelerate_config}; --accelerate_config takes one for accelerate"
            )
        config.accelerate_config = str(path)


def check_packages() -> None:
    """Raises UserError where a later stage would miss a package: hours of training too late."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            settings.check_extra(package)


def check_variables(recipe: str | None, variables: dict[str, str]) -> None:
    """Says which optional variables of the recipe are not set, and so what is left out.

    Raises:
        UserError: a variable that must be set is not; the message names all of them.
    """
    if not recipe or not find_recipe(recipe).is_file():
        return  # `check_recipe` says why it cannot be read
    needed = settings.variables_of(recipe)
    missing = [name for name, required in needed.items() if required and name not in variables]
    if missing:
        words = " ".join(f"{name}=VALUE" for name in missing)
        raise UserError(f"{recipe} needs {', '.join(missing)}; give --set {words}")
    left = [name for name, required in needed.items() if not required and name not in variables]
    if left:
        words = " ".join(f"{name}=VALUE" for name in left)
        print(f"{recipe}: what needs {', '.join(left)} is left out; --set {words} adds it", flush=True)


def unfinished(run_dir: Path, stages: list[Stage]) -> list[Stage]:
    """The stages that are still to be trained.

    Raises:
        UserError: a finished stage was made from an earlier model of one of them.
    """
    found = [stage for stage in stages if not settings.load_run(run_dir / stage.folder)]
    lost, stale = list(found), []
    for later in STAGES:
        if any(made_from(later, earlier, run_dir) for earlier in lost):
            lost.append(later)
            stale.append(str(run_dir / later.folder))
    if stale:
        raise UserError(
            f"{found[0].name} is to be trained, and what is in {', '.join(stale)} began with an earlier "
            f"{found[0].folder}; delete {', '.join(stale)} too, start over with --fresh, or give another --run_dir"
        )
    return found


def made_from(later: Stage, earlier: Stage, run_dir: Path) -> bool:
    """Whether a finished stage of this run began with the folder of an earlier one; the run may have been moved."""
    run = settings.load_run(run_dir / later.folder)
    recorded = run and later.takes and run["config"].get(later.takes)
    if not recorded or Path(recorded).name != earlier.folder:
        return False
    return not Path(recorded).exists() or Path(recorded).resolve() == (run_dir / earlier.folder).resolve()


def check_recipe(recipe_options: list[str], stages: list[Stage]) -> None:
    """Raises UserError where a later stage or the evaluation would refuse the recipe: hours of training too late."""
    from nanochat_hf import tasks
    from nanochat_hf.evals.evaluation_config import EvaluationConfig

    if not recipe_options:
        return
    with contextlib.redirect_stderr(io.StringIO()):  # a missing section is said when its stage begins
        configs = [settings.parse_stage(stage.name, stage.config_class, recipe_options) for stage in stages]
        evaluation = settings.parse_stage("evaluation", EvaluationConfig, recipe_options)
    for config in (*configs, evaluation):
        specs = [*getattr(config, "tasks", []), *getattr(config, "val_tasks", [])]
        tasks.check_specs(specs)
        tasks.check_sources(specs)
    trains_model = any(stage.name != "tokenizer" for stage in stages)
    if trains_model and "chat" in evaluation.evaluations and evaluation.chat_stages and not evaluation.tasks:
        raise UserError(
            "the evaluation at the end has no chat tasks; name them as tasks in the recipe's section evaluation:, or "
            "write evaluations: [bits_per_byte, core] there"
        )


def check_core_bundle(recipe: str | None, variables: dict[str, str]) -> None:
    """Raises UserError where the evaluation at the end would not find its CORE bundle: hours of training too late."""
    from nanochat_hf.evals.bundle import check_bundle
    from nanochat_hf.evals.evaluation_config import MADE_BUNDLES, MICROWORLD

    wanted = settings.read_recipe(recipe, "evaluation", None, variables) if recipe else {}
    bundle = wanted.get("core_bundle", MICROWORLD)
    if bundle not in MADE_BUNDLES and "core" in wanted.get("evaluations", ["core"]):
        try:
            check_bundle(bundle, wanted.get("core_tasks"))
        except UserError as error:
            raise UserError(f"the evaluation at the end needs the CORE bundle that {recipe} names: {error}") from None


def check_unchanged(folder: Path, stage: Stage, recipe: str | None, variables: dict[str, str]) -> None:
    """Raises UserError where a finished stage was made with other settings or data than the recipe now has.

    A setting that did not exist yet when the stage was made counts as its default. Text is compared by content, and
    only by name where an older version of this program made the stage.
    """
    from nanochat_hf import tasks
    from nanochat_hf.data import fingerprints

    run = settings.load_run(folder) or {}
    known = {field.name: field for field in fields(stage.config_class)}
    defaults = {name: settings.default_of(field) for name, field in known.items()}
    made_with = defaults | run["config"]
    wanted = settings.read_recipe(recipe, stage.name, set(made_with), variables) if recipe else {}
    found = {"on_bad_file"}  # decides what is read, and the content is compared
    found |= {name for name in ("packing", "preset") if wanted.get(name) == "auto"}  # run.json has what was chosen
    if str(wanted.get("auto_device_batch")).lower() == "true":
        found.add("device_batch_size")
    difference = None
    if "fingerprint" in run:
        if "data" in made_with:
            data = settings.convert(wanted.get("data", made_with["data"]), list[str], {}, "data")
            read = fingerprints.of_text(data)
        else:
            read = tasks.fingerprints_of([*made_with["tasks"], *made_with["val_tasks"]])
        difference = fingerprints.difference(run["fingerprint"], read)
        found |= set() if difference else {"data"}
    changed = [
        name
        for name, value in wanted.items()
        if name not in found and not same_value(made_with[name], value, known[name].metadata if name in known else {})
    ]
    if changed:
        name = changed[0]
        raise UserError(
            f"{folder} was made with {name}: {made_with[name]}, the recipe now says {wanted[name]}; "
            f"delete that folder and the later ones, start over with --fresh, or give another --run_dir"
        )
    if difference:
        raise UserError(
            f"{difference} since {folder} was made; put the data back as it was, delete that folder and the later "
            "ones, start over with --fresh, or give another --run_dir"
        )


def same_value(made_with: object, wanted: object, rules: Mapping[str, Any]) -> bool:
    """Compares a resolved setting with a recipe's, which `settings.convert` has not seen.

    Args:
        rules: the metadata of the setting's field.
    """
    kinds: dict[type, object] = {list: list[str], bool: bool, int: int, float: float}
    if type(made_with) in kinds:
        try:
            off = made_with if made_with in (0, -1) else None
            wanted = settings.convert(wanted, kinds[type(made_with)], {**rules, "off": off}, "")
        except UserError:
            return False
    elif isinstance(made_with, str) and isinstance(wanted, str | bool):
        wanted = os.path.expanduser(str(wanted).lower() if isinstance(wanted, bool) else wanted)
    return made_with == wanted


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
