"""The settings of all evaluations, and what is checked before one begins.

Nothing here imports torch, so `--help` and mistakes are said at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat_hf.settings import (
    DTYPES,
    MAX_SEED,
    MODEL_FOLDERS,
    RUN_FILE,
    UserError,
    check_checkpoint,
    check_device,
    check_output_dir,
    setting,
)

MICROWORLD = "microworld"
TEXT = "text"  # the bundle of completion tasks made of the validation documents
MADE_BUNDLES = (MICROWORLD, TEXT)  # all others are folders
NAMES = ("bits_per_byte", "core", "chat", "strangers")  # the evaluations; the last is the quickstart's own


@dataclass
class EvaluationConfig:
    """One set of settings for all evaluation scripts; each script reads those that concern it."""

    checkpoints: list[str] = setting(
        [], "checkpoint folders or Hub ids; results go into eval/ of each folder", path=True, commas=True
    )
    run_dir: str | None = setting(None, "run folder; its finished stages are evaluated", path=True)
    stages: list[str] = setting(list(MODEL_FOLDERS), "stages of --run_dir to evaluate", choices=MODEL_FOLDERS)
    evaluations: list[str] = setting(list(NAMES[:3]), "evaluations to run", choices=NAMES)
    output_dir: str | None = setting(
        None,
        "folder for results, with one subfolder per checkpoint if there are several; default: eval/",
        path=True,
    )
    redo: bool = setting(False, "evaluate again even where results with these settings exist")

    data: str = setting(MICROWORLD, "source whose validation documents are scored")
    text_column: str | None = setting(None, "column or key with the text of --data; found if not given")
    on_bad_file: str = setting("stop", "what a file of --data that cannot be read does", choices=("stop", "skip"))
    max_documents: int = setting(500, "bits per byte: number of documents; -1: all", at_least=1, also=[-1])

    core_bundle: str = setting(
        MICROWORLD,
        "core: the 22 tasks of CORE, downloaded once (162 MB); text: completion tasks made of --data's documents; "
        "default: built-in completion tasks; or the folder of a bundle",
        path=True,
    )
    core_tasks: list[str] | None = setting(None, "labels of the bundle's tasks; default: all", commas=True)
    core_stages: list[str] = setting(
        list(MODEL_FOLDERS), "stages of --run_dir that CORE is run on", choices=MODEL_FOLDERS
    )
    max_per_task: int = setting(-1, "CORE: items per task; -1: all", at_least=1, also=[-1])

    tasks: list[str] = setting(
        [], "chat tasks: name[/split][=path][@[~]max_examples], such as gsm8k=DIR@200; ~: at random"
    )
    chat_stages: list[str] = setting(
        list(MODEL_FOLDERS), "stages of --run_dir that the chat tasks are run on", choices=MODEL_FOLDERS
    )
    split: str = setting("test", "split of the chat tasks")
    max_problems: int | None = setting(None, "chat tasks: first items per task; default: all", at_least=1)
    num_samples: int = setting(
        1, "answers per problem; above 1, pass@k is reported as well", at_least=1, at_most=100_000
    )
    temperature: float = setting(0.0, "sampling temperature; 0: greedy", at_least=0.01, at_most=100, also=[0])
    top_k: int | None = setting(50, "sample from the k most likely tokens; 0: from all", at_least=0)
    max_new_tokens: int = setting(512, "longest answer in tokens", at_least=1, at_most=1_000_000)
    allow_code_execution: bool = setting(False, "run programs that the model wrote (HumanEval), inside the sandbox")

    stranger_samples: int = setting(3, "stranger's list: conversations per item", at_least=1, at_most=100_000)
    stranger_sampling: list[str] = setting(
        [], "stranger's list: other sampling than the checkpoint's own, such as temperature=0.3"
    )
    stranger_stages: list[str] = setting(
        [name for name in MODEL_FOLDERS if name != "base"],
        "stages of --run_dir that the stranger's list is run on",
        choices=MODEL_FOLDERS,
    )

    max_tokens: int = setting(16384, "padded tokens per forward pass", at_least=1)
    max_length: int | None = setting(None, "longest input in tokens; default: the model's context", at_least=1)
    batch_size: int = setting(32, "answers generated at the same time", at_least=1, at_most=1_000_000)
    dtype: str = setting(
        "auto",
        "float32, bfloat16, float16 or auto: bfloat16 on CUDA, else as the checkpoint",
        choices=DTYPES,
    )
    device: str = setting("auto", "auto, cpu, cuda, mps")
    revision: str | None = setting(None, "commit or tag of a Hub model")
    trust_remote_code: bool = setting(False, "run the Python code in a Hub model's repository")
    seed: int = setting(0, "seed of the sampling", at_least=0, at_most=MAX_SEED)


def check_evaluation(config: EvaluationConfig, names: Sequence[str]) -> None:
    """Refuses what cannot be evaluated, before anything slow is imported.

    Args:
        config: the settings.
        names: the evaluations to run, some of `NAMES`.

    Raises:
        UserError: an evaluation is unknown, there is nothing to evaluate, or settings do not fit together.
    """
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise UserError(f"there is no evaluation named {', '.join(unknown)}; known are {', '.join(NAMES)}")
    if not names:
        raise UserError(f"no evaluation is named; give --evaluations, some of {', '.join(NAMES)}")
    check_device(config.device)
    if config.output_dir:
        check_output_dir(config.output_dir, unfinished=False)
    targets = checkpoints_of(config)
    for _, checkpoint in targets:
        check_checkpoint(checkpoint)
    wanted = [
        name for name in names if any(stage is None or stage in stages_for(name, config) for stage, _ in targets)
    ]
    if "chat" in wanted:
        _check_chat(config, others=[name for name in names if name != "chat"])
    if "core" in wanted and config.core_bundle not in MADE_BUNDLES:
        from nanochat_hf.evals.bundle import check_bundle

        check_bundle(config.core_bundle, config.core_tasks)


def _check_chat(config: EvaluationConfig, others: Sequence[str]) -> None:
    from nanochat_hf import tasks

    specs = tasks.separate(config.tasks)
    if not specs:
        without = f", or leave them out with --evaluations {' '.join(others)}" if others else ""
        raise UserError(
            f"no chat tasks are given: name them with --tasks, such as --tasks gsm8k=DIR arc-easy=DIR{without}"
        )
    tasks.check_specs(specs)
    for spec in specs:
        if (repeat := tasks.parts_of(spec)["repeat"]) is not None:
            raise UserError(
                f"the task '{spec}' is for training; an evaluation asks each item once: leave out *{repeat}"
            )
    if config.num_samples > 1 and config.temperature == 0:
        raise UserError("several samples of a greedy model are all the same: set --temperature above 0")


def checkpoints_of(config: EvaluationConfig) -> list[tuple[str | None, str]]:
    """(stage, checkpoint) pairs; the stage is None for those of `checkpoints`.

    Raises:
        UserError: nothing is named, or the run folder has no finished stage.
    """
    found: list[tuple[str | None, str]] = [(None, name.rstrip("/")) for name in config.checkpoints]
    if config.run_dir:
        run_dir = Path(config.run_dir)
        finished = [stage for stage in config.stages if (run_dir / stage / RUN_FILE).exists()]
        if not finished:
            raise UserError(f"{run_dir} has no finished stage of {', '.join(config.stages)}; train first")
        found += [(stage, str(run_dir / stage)) for stage in finished]
    if not found:
        raise UserError("nothing to evaluate: give --checkpoints FOLDER … or --run_dir FOLDER")
    return found


def stages_for(name: str, config: EvaluationConfig) -> list[str]:
    """The stages of the run folder that an evaluation is run on."""
    chosen = {"core": config.core_stages, "chat": config.chat_stages, "strangers": config.stranger_stages}
    return chosen.get(name, config.stages)
