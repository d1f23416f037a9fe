"""How a stage is configured and how its result is recorded.

A stage is one dataclass. Its values come from, in rising order of authority: the dataclass defaults, the recipe
(``--config recipe.yaml``: the sections ``common`` and the stage's own name) and the command line. ``--config
quickstart`` names a recipe of the package. A recipe can leave paths as variables, ``${name}``, filled from ``--set
name=value``. The resolved values are written beside the weights as ``run.json``, the last file of all: where it is,
the stage is finished.

A field made by `setting` says which values it may have. Recipes and command lines are held to it before anything else
is imported, so a mistake is said within a second.
"""

from nanochat_hf.settings.checks import (
    CHAT_SAMPLING,
    DTYPES,
    check_address,
    check_checkpoint,
    check_device,
    check_output_dir,
    find_checkpoint,
)
from nanochat_hf.settings.command_line import (
    SCRIPT_FOLDERS,
    SCRIPTS,
    Parser,
    StageHelp,
    as_typed,
    parse_stage,
    program,
    take_recipe_options,
)
from nanochat_hf.settings.errors import (
    STOPPED_BY_SIGTERM,
    UserError,
    check_extra,
    is_out_of_memory,
    load_function,
    load_module,
    reason_of,
    run_main,
)
from nanochat_hf.settings.failures import job_size
from nanochat_hf.settings.fields import (
    MAX_DEPTH,
    MAX_RATE,
    MAX_ROWS,
    MAX_SEED,
    MAX_STEPS,
    MAX_TOKENS,
    checked,
    convert,
    default_of,
    setting,
    split_at_commas,
)
from nanochat_hf.settings.processes import run_command
from nanochat_hf.settings.recipes import (
    LAUNCH_FILES,
    MODEL_FOLDERS,
    RECIPES,
    SHARED_SETTINGS,
    STAGE_FOLDERS,
    find_recipe,
    read_recipe,
    recipe_names,
    stage_folder,
    variables_of,
)
from nanochat_hf.settings.run_files import RUN_FILE, environment, load_run, save_run, without_paths, write_json

__all__ = [
    "CHAT_SAMPLING",
    "DTYPES",
    "LAUNCH_FILES",
    "MAX_DEPTH",
    "MAX_RATE",
    "MAX_ROWS",
    "MAX_SEED",
    "MAX_STEPS",
    "MAX_TOKENS",
    "MODEL_FOLDERS",
    "Parser",
    "RECIPES",
    "RUN_FILE",
    "SCRIPTS",
    "SCRIPT_FOLDERS",
    "SHARED_SETTINGS",
    "STAGE_FOLDERS",
    "STOPPED_BY_SIGTERM",
    "StageHelp",
    "UserError",
    "as_typed",
    "check_address",
    "check_checkpoint",
    "check_device",
    "check_extra",
    "check_output_dir",
    "checked",
    "convert",
    "default_of",
    "environment",
    "find_checkpoint",
    "find_recipe",
    "is_out_of_memory",
    "job_size",
    "load_function",
    "load_module",
    "load_run",
    "parse_stage",
    "program",
    "read_recipe",
    "reason_of",
    "recipe_names",
    "run_command",
    "run_main",
    "save_run",
    "setting",
    "split_at_commas",
    "stage_folder",
    "take_recipe_options",
    "variables_of",
    "without_paths",
    "write_json",
]
