"""Recipes: YAML files with a section per stage, and the folders of a run."""

import os
import re
import sys
from pathlib import Path
from typing import Any

from nanochat_hf.settings.errors import UserError
from nanochat_hf.settings.fields import did_you_mean

RECIPES = Path(__file__).parents[1] / "recipes"
LAUNCH_FILES = RECIPES / "accelerate"  # files for `accelerate launch --config_file`
# Each training stage and its folder in a run, in the order of training.
STAGE_FOLDERS = {
    "tokenizer": "tokenizer",
    "pretrain": "base",
    "midtrain": "mid",
    "sft": "sft",
    "dpo": "dpo",
    "rl": "rl",
}
MODEL_FOLDERS = tuple(folder for stage, folder in STAGE_FOLDERS.items() if stage != "tokenizer")
# What a recipe's sections may be called.
SECTIONS = ("common", *STAGE_FOLDERS, "evaluation", "tokenizer_evaluation", "speedrun", "report", "make_identity")
# The settings that two or more stages have: what a recipe's section `common` may hold.
SHARED_SETTINGS = frozenset(
    "allow_code_execution attention compile core_bundle data default_sampling device_batch_size dtype "
    "embedding_lr epochs eval_every final_lr_frac gradient_checkpointing init_lr_frac learning_rate lora_alpha "
    "lora_rank lora_targets loss_type matrix_lr max_new_tokens max_seq_len model momentum_peak momentum_start "
    "momentum_warmup_steps num_iterations num_samples num_threads on_bad_file optimizer output_dir packing report_to "
    "rollout_batch_size run_dir save_every save_minutes save_total_limit scalar_lr seed sequence_length stages "
    "tasks temperature text_column top_k total_batch_size unembedding_lr val_tasks warmdown_ratio warmup_ratio "
    "weight_decay".split()
)
VARIABLE = re.compile(r"\$\{(\w+)(\??)\}")  # ${name}, or ${name?} for one that may be left unset
LEFT_OUT = object()  # in place of a value whose optional variable is not set


def read_recipe(
    path: str | os.PathLike, stage: str, known: set[str] | None = None, variables: dict[str, str] | None = None
) -> dict[str, Any]:
    """Returns the values that a recipe gives a stage, with `${name}` filled from `variables`.

    A value or an item of a list that names an optional variable, `${name?}`, is left out where that one is not set.

    Args:
        path: YAML file of sections, or the name of a recipe of the package. The section `common` holds values that
            several stages share.
        stage: name of the stage's own section.
        known: the stage's field names. From `common` only these are taken; any other name in the stage's own section
            is an error. None accepts every name.
        variables: name → value.

    Raises:
        UserError: the file cannot be read, is not such a recipe, or has a section, a name or a variable that nothing
            uses, or an unset variable.
    """
    recipe, text = load_recipe(path, stage)
    unused = sorted(set(variables or {}) - {name for name, _ in VARIABLE.findall(text)})
    if unused:
        raise UserError(
            f"{path} has no variable ${{{unused[0]}}} for --set {unused[0]}=...; --set fills variables, "
            "and a setting is an option of its own, such as --depth 4"
        )
    common, own = recipe.get("common") or {}, recipe.get(stage) or {}
    if known is not None:
        for name in own:
            if name not in known:
                raise UserError(
                    f"{path}: the section {stage}: has no setting named {name}{did_you_mean(str(name), known)}; "
                    "see --help"
                )
        for name in common:
            if name not in known | SHARED_SETTINGS:
                raise UserError(
                    f"{path}: the section common: has {name}, which several stages do not share"
                    f"{did_you_mean(str(name), known | SHARED_SETTINGS)}; put it into the section of its stage"
                )
        common = {name: value for name, value in common.items() if name in known}
        if stage in STAGE_FOLDERS and stage not in recipe and os.environ.get("RANK", "0") == "0":
            print(f"{path} has no section {stage}: defaults and the command line count", file=sys.stderr, flush=True)
    filled = {name: _fill(value, variables or {}, path) for name, value in {**common, **own}.items()}
    return {name: value for name, value in filled.items() if value is not LEFT_OUT}


def load_recipe(path: str | os.PathLike, stage: str) -> tuple[dict[str, Any], str]:
    """Returns a recipe's sections as they are written, variables not filled, and the file's text.

    Args:
        path: as in `read_recipe`.
        stage: the stage that asks; it may have a section beside the usual ones.

    Raises:
        UserError: the file cannot be read, or is not such a recipe.
    """
    try:
        text = find_recipe(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"cannot read the recipe {path} ({error.strerror}); --config takes a YAML file, or one of "
            f"{', '.join(recipe_names())}"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"the recipe {path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    recipe = _parse_yaml(text, path) or {}
    if not isinstance(recipe, dict) or not all(isinstance(section or {}, dict) for section in recipe.values()):
        raise UserError(f"{path} must hold sections such as {stage}:, each with 'name: value' lines below it")
    sections = {*SECTIONS, stage}
    for name in recipe:
        if name not in sections:
            raise UserError(f"{path}: no stage reads a section {name}:{did_you_mean(str(name), sections)}")
    return recipe, text


def variables_of(path: str | os.PathLike) -> dict[str, bool]:
    """Returns the variables of a recipe that can be read: name → whether it must be set."""
    found: dict[str, bool] = {}
    for line in find_recipe(path).read_text(encoding="utf-8-sig").splitlines():
        for name, optional in VARIABLE.findall(line.partition("#")[0]):
            found[name] = found.get(name, False) or not optional
    return found


def find_recipe(name: str | os.PathLike, folder: Path = RECIPES) -> Path:
    """Returns the path of a YAML file: `name` itself, or where there is no such file, the package's file of that name.

    Args:
        name: a path, or a bare name with or without `.yaml`, such as `quickstart`.
        folder: where the package keeps such files: `RECIPES` or `LAUNCH_FILES`.
    """
    path = Path(os.path.expanduser(name))
    packaged = folder / f"{path.name.removesuffix('.yaml')}.yaml"
    return packaged if len(path.parts) == 1 and not path.is_file() and packaged.is_file() else path


def recipe_names(folder: Path = RECIPES) -> list[str]:
    """The names of the package's recipes."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _parse_yaml(text: str, path: str | os.PathLike) -> Any:
    """Parses YAML. The same name twice in one section is an error; YAML readers would take the last."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: Any, node: Any) -> dict:
        names = [loader.construct_object(key, deep=True) for key, _ in node.value]
        for number, name in enumerate(names):
            if not isinstance(name, str | int | float | bool | None):
                raise UserError(f"{path}, line {node.start_mark.line + 1}: a name cannot be a list or a section")
            if name in names[:number]:
                line = node.value[number][0].start_mark.line + 1
                raise UserError(f"{path}, line {line}: {name} is given a second time; remove one of the two")
        loader.flatten_mapping(node)
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error).split("\n")[0] or type(error).__name__
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{where} is not valid YAML ({reason}); correct it or start from one of `nanochat-hf recipes`"
        ) from None


def _fill(value: Any, variables: dict[str, str], path: str | os.PathLike) -> Any:
    """Replaces `${name}` in every string of a recipe's value; `LEFT_OUT` where an optional one is not set."""
    if isinstance(value, list):
        return [item for item in (_fill(item, variables, path) for item in value) if item is not LEFT_OUT]
    if isinstance(value, dict):
        filled = {name: _fill(item, variables, path) for name, item in value.items()}
        return {name: item for name, item in filled.items() if item is not LEFT_OUT}
    if not isinstance(value, str):
        return value
    missing = [(name, optional) for name, optional in VARIABLE.findall(value) if name not in variables]
    for name, optional in missing:
        if not optional:
            raise UserError(f"{path} has the variable ${{{name}}}; set it on the command line: --set {name}=VALUE")
    return LEFT_OUT if missing else VARIABLE.sub(lambda match: variables[match[1]], value)


def stage_folder(folder: str | os.PathLike) -> Path:
    """Returns a folder under the name that tells the stage: it may be given as `.`, `x/..` or through a link."""
    folder, target = Path(folder), Path(folder).resolve()
    has_no_name, tells_stage = folder.name in ("", ".."), folder.name in MODEL_FOLDERS
    return target if has_no_name or (target.name in MODEL_FOLDERS and not tells_stage) else folder
