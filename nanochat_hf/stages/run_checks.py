"""What `nanochat-hf train` checks before its first stage: a mistake must not be found hours of training too late."""

import contextlib
import importlib.util
import io
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from nanochat_hf import settings
from nanochat_hf.settings import UserError, find_recipe
from nanochat_hf.stages.stage_list import STAGES, Stage

PACKAGES = ("accelerate", "datasets", "pyarrow", "trl")  # what an install without the extra `train` lacks


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


def recipe_words(recipe: str | None, variables: dict[str, str]) -> list[str]:
    """The words by which a stage's command line takes the recipe and its variables."""
    given = [f"{name}={value}" for name, value in variables.items()]
    return (["--config", recipe] if recipe else []) + (["--set", *given] if given else [])


def check_recipe(recipe: str | None, variables: dict[str, str], stages: list[Stage]) -> None:
    """Raises UserError where a later stage or the evaluation would refuse the recipe: hours of training too late.

    So it does where there is none, since the evaluation has no tasks then, and where it names what `train` sets.
    """
    from nanochat_hf import tasks
    from nanochat_hf.evals.evaluation_config import EvaluationConfig

    trains_model = any(stage.name != "tokenizer" for stage in stages)
    if not recipe:
        if trains_model:
            names = ", ".join(settings.recipe_names())
            raise UserError(f"train needs a recipe: a YAML file, or one of {names}")
        return
    for stage in stages:
        for name in {"output_dir", stage.takes} & settings.read_recipe(recipe, stage.name, None, variables).keys():
            where = f"{recipe}: the section {stage.name}:"
            raise UserError(f"{where} has {name}, which train sets itself; remove it there")
    recipe_options = recipe_words(recipe, variables)
    with contextlib.redirect_stderr(io.StringIO()):  # a missing section is said when its stage begins
        configs = [settings.parse_stage(stage.name, stage.config_class, recipe_options) for stage in stages]
        evaluation = settings.parse_stage("evaluation", EvaluationConfig, recipe_options)
    for config in (*configs, evaluation):
        specs = [*getattr(config, "tasks", []), *getattr(config, "val_tasks", [])]
        tasks.check_specs(specs)
        tasks.check_sources(specs)
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
    run = settings.load_run(folder) or {}
    known = {field.name: field for field in fields(stage.config_class)}
    made_with = {name: settings.default_of(field) for name, field in known.items()} | run["config"]
    wanted = settings.read_recipe(recipe, stage.name, set(made_with), variables) if recipe else {}
    difference = changed_data(run, made_with, wanted)
    found = {"on_bad_file"}  # decides what is read, and the content is compared
    found |= {name for name in ("packing", "preset") if wanted.get(name) == "auto"}  # run.json has what was chosen
    if str(wanted.get("auto_device_batch")).lower() == "true":
        found.add("device_batch_size")
    if "fingerprint" in run and not difference:
        found.add("data")
    for name, value in wanted.items():
        rules = known[name].metadata if name in known else {}
        if name not in found and not same_value(made_with[name], value, rules):
            raise UserError(
                f"{folder} was made with {name}: {made_with[name]}, the recipe now says {value}; "
                f"delete that folder and the later ones, start over with --fresh, or give another --run_dir"
            )
    if difference:
        raise UserError(
            f"{difference} since {folder} was made; put the data back as it was, delete that folder and the later "
            "ones, start over with --fresh, or give another --run_dir"
        )


def changed_data(run: dict[str, Any], made_with: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """What has changed in the data of a finished stage, in words; None where nothing has, or nothing is known.

    Args:
        run: the stage's `run.json`.
        made_with: its settings.
        wanted: the settings that the recipe names now.
    """
    from nanochat_hf import tasks
    from nanochat_hf.data import fingerprints

    if "fingerprint" not in run:
        return None
    if "data" in made_with:
        read = fingerprints.of_text(settings.convert(wanted.get("data", made_with["data"]), list[str], {}, "data"))
    else:
        read = tasks.fingerprints_of([*made_with["tasks"], *made_with["val_tasks"]])
    return fingerprints.difference(run["fingerprint"], read)


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
