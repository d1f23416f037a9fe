"""Runs evaluations on checkpoints: what the scripts of `evaluation/` share.

Each evaluation of a checkpoint folder leaves `eval/<name>.json` in it: flat `metrics` for tables, and `details`.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from nanochat_hf import settings
from nanochat_hf.evals import bits_per_byte as bpb
from nanochat_hf.evals import core
from nanochat_hf.evals import tasks as task_scores
from nanochat_hf.evals.scoring import context_length, distributed_rank
from nanochat_hf.evals.subject import Subject, load_subject
from nanochat_hf.settings import MODEL_FOLDERS, UserError

MICROWORLD = "microworld"


@dataclass
class EvaluationConfig:
    """One set of settings for all evaluation scripts; each script reads what concerns it."""

    checkpoints: list[str] = field(
        default_factory=list, metadata={"help": "checkpoint folders or Hub ids; results go into eval/ of each folder"}
    )
    run_dir: str | None = field(default=None, metadata={"help": "run folder: evaluates the stages that it holds"})
    stages: list[str] = field(
        default_factory=lambda: list(MODEL_FOLDERS), metadata={"help": "which stages of --run_dir"}
    )
    evaluations: list[str] = field(
        default_factory=lambda: ["bits_per_byte", "core", "chat"], metadata={"help": "what stages.py runs"}
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "folder for results, in one of its own for each of several checkpoints; default: theirs"},
    )
    redo: bool = field(default=False, metadata={"help": "evaluate again what has been evaluated with these settings"})

    data: str = field(default=MICROWORLD, metadata={"help": "documents for bits per byte; their validation split"})
    max_documents: int = field(default=500, metadata={"help": "bits per byte: number of documents, -1 for all"})

    core_bundle: str = field(default=MICROWORLD, metadata={"help": "CORE bundle folder, or the built-in one"})
    core_tasks: list[str] | None = field(default=None, metadata={"help": "labels of the CORE tasks; default all"})
    core_stages: list[str] = field(
        default_factory=lambda: list(MODEL_FOLDERS), metadata={"help": "stages of --run_dir that CORE is run on"}
    )
    max_per_task: int = field(default=-1, metadata={"help": "CORE: items a task, -1 for all"})

    tasks: list[str] = field(
        default_factory=list,
        metadata={"help": "chat tasks: name[/split][=path][@max_examples], such as gsm8k=DIR@200"},
    )
    chat_stages: list[str] = field(
        default_factory=lambda: list(MODEL_FOLDERS),
        metadata={"help": "stages of --run_dir that the chat tasks are run on"},
    )
    split: str = field(default="test", metadata={"help": "split of the chat tasks"})
    max_problems: int | None = field(default=None, metadata={"help": "chat tasks: items a task; default all"})
    num_samples: int = field(default=1, metadata={"help": "answers a problem; above 1 pass@k is reported as well"})
    temperature: float = field(default=0.0, metadata={"help": "sampling temperature; 0 is greedy"})
    top_k: int | None = field(default=50, metadata={"help": "sample among the k most likely tokens"})
    max_new_tokens: int = field(default=512, metadata={"help": "longest answer in tokens"})
    allow_code_execution: bool = field(
        default=False, metadata={"help": "run programs that the model wrote (HumanEval), inside the sandbox"}
    )

    max_tokens: int = field(default=16384, metadata={"help": "padded tokens a forward pass"})
    max_length: int | None = field(default=None, metadata={"help": "longest input; default the model's context"})
    batch_size: int = field(default=32, metadata={"help": "answers generated together"})
    dtype: str = field(default="auto", metadata={"help": "auto, float32 or bfloat16"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, mps"})
    revision: str | None = field(default=None, metadata={"help": "commit or tag of a Hub model"})
    trust_remote_code: bool = field(default=False, metadata={"help": "run code that a Hub model brings along"})
    seed: int = field(default=0, metadata={"help": "seed of the sampling"})


def show_progress(total: int, title: str) -> tqdm:
    return tqdm(total=total, desc=title, unit="item", disable=distributed_rank()[0] != 0, leave=False)


def input_limit(subject: Subject, config: EvaluationConfig) -> int | None:
    return config.max_length or context_length(subject.model)


# ---- the three evaluations ---------------------------------------------------------


def run_bits_per_byte(subject: Subject, config: EvaluationConfig) -> dict[str, Any]:
    from nanochat_hf.data.sources import open_documents

    texts = open_documents(config.data, "validation")
    texts = list(texts if config.max_documents < 0 else islice(texts, config.max_documents))
    if not texts:
        raise UserError(f"{config.data} has no validation documents; give another --data")
    with show_progress(len(texts), f"{subject.name} bits per byte") as bar:
        found = bpb.bits_per_byte(
            subject.model,
            subject.encode,
            texts,
            max_length=input_limit(subject, config) or 2048,
            max_tokens=config.max_tokens,
            progress=bar.update,
        )
    return {"metrics": {name: found.pop(name) for name in ("bits_per_byte", "bytes_per_token")}, "details": found}


def run_core(subject: Subject, config: EvaluationConfig) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        bundle = config.core_bundle
        if bundle == MICROWORLD:
            from nanochat_hf.evals.microworld_bundle import write_bundle

            bundle = write_bundle(folder)
        tasks = core.load_bundle(bundle, max_per_task=config.max_per_task, labels=config.core_tasks)
    results = []
    for task in tasks:
        with show_progress(len(task.items), f"{subject.name} CORE {task.label}") as bar:
            limits = {"max_length": input_limit(subject, config), "max_tokens": config.max_tokens}
            results.append(core.evaluate_task(subject.model, subject.encode, task, progress=bar.update, **limits))
    return {"metrics": core.summarize(results), "details": {"tasks": [result.row() for result in results]}}


def run_chat(subject: Subject, config: EvaluationConfig) -> dict[str, Any]:
    tasks = load_tasks(config)
    sampling = task_scores.Sampling(
        config.num_samples, config.temperature, config.top_k, config.max_new_tokens, config.batch_size, config.seed
    )
    results = []
    for task in tasks:
        count = len(task) if config.max_problems is None else min(len(task), config.max_problems)
        with show_progress(count, f"{subject.name} {task.name}") as bar:
            options = {"limit": config.max_problems, "progress": bar.update}
            if task.kind == "choice":
                options |= {"max_tokens": config.max_tokens, "max_length": input_limit(subject, config)}
                results.append(task_scores.evaluate_choice(subject, task, **options))
            else:
                results.append(task_scores.evaluate_generative(subject, task, sampling, **options))
    details = {
        "prompt_style": subject.prompt_style,
        "tasks": [result.row() for result in results],
        "samples": {result.name: result.samples for result in results if result.samples},
    }
    return {"metrics": task_scores.summarize(results), "details": details}


def load_tasks(config: EvaluationConfig) -> list[Any]:
    """The chat tasks of the configuration. Those that run generated code are refused without permission."""
    from nanochat_hf import tasks

    if not config.tasks:
        raise UserError("no chat tasks are given: name them with --tasks, such as --tasks gsm8k=DIR arc-easy=DIR")
    loaded = [tasks.load(spec, config.split)[0] for spec in config.tasks]
    tasks.check_scorers(loaded)
    tasks.check_code_execution(loaded, config.allow_code_execution)
    return loaded


EVALUATIONS: dict[str, Callable[[Subject, EvaluationConfig], dict[str, Any]]] = {
    "bits_per_byte": run_bits_per_byte,
    "core": run_core,
    "chat": run_chat,
}
# What decides an evaluation's result: a stored result counts only while these settings are the same.
RELEVANT = {
    "bits_per_byte": ("data", "max_documents"),
    "core": ("core_bundle", "core_tasks", "max_per_task"),
    "chat": ("tasks", "split", "max_problems", "num_samples", "temperature", "top_k", "max_new_tokens", "seed"),
}
ALWAYS_RELEVANT = ("max_length", "dtype", "revision")


# ---- checkpoints and results -------------------------------------------------------


def run_evaluations(config: EvaluationConfig, names: list[str]) -> None:
    """Evaluates every checkpoint of the configuration and writes the results beside it."""
    unknown = sorted(set(names) - set(EVALUATIONS))
    if unknown:
        raise UserError(f"there is no evaluation named {', '.join(unknown)}; there are {', '.join(EVALUATIONS)}")
    start_distributed()
    targets = checkpoints_of(config)
    for stage, checkpoint in targets:
        wanted = [name for name in names if stage is None or stage in stages_for(name, config)]
        missing = [name for name in wanted if config.redo or not is_current(checkpoint, name, config)]
        for name in sorted(set(wanted) - set(missing)):
            say(f"{checkpoint}: {name} finished already ({result_path(checkpoint, name, config)})")
        if not missing:
            continue
        subject = load_subject(
            checkpoint,
            device=config.device,
            dtype=config.dtype,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
        for name in missing:
            evaluate_one(subject, name, config)
        del subject


def evaluate_one(subject: Subject, name: str, config: EvaluationConfig) -> dict[str, Any]:
    """Runs one evaluation, writes its result and prints it."""
    started = time.time()
    result = {"evaluation": name, "checkpoint": subject.name} | EVALUATIONS[name](subject, config)
    result |= {
        "seconds": time.time() - started,
        "config": relevant_settings(name, config),
        "environment": settings.environment(),
    }
    if distributed_rank()[0] == 0:
        path = result_path(subject.name, name, config)
        settings.write_json(path, result)
        say(f"\n{subject.name} · {name} · {result['seconds']:.0f} s → {path}\n{result_table(result)}")
    return result


def start_distributed() -> None:
    """Joins the processes that `accelerate launch` or `torchrun` started; does nothing for a single one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def checkpoints_of(config: EvaluationConfig) -> list[tuple[str | None, str]]:
    """(stage, checkpoint) pairs; the stage is None for checkpoints that are named one by one."""
    found: list[tuple[str | None, str]] = [(None, name.rstrip("/")) for name in config.checkpoints]
    if config.run_dir:
        run_dir = Path(config.run_dir)
        held = [stage for stage in config.stages if (run_dir / stage / settings.RUN_FILE).exists()]
        if not held:
            raise UserError(f"{run_dir} holds no finished stage of {', '.join(config.stages)}; train first")
        found += [(stage, str(run_dir / stage)) for stage in held]
    if not found:
        raise UserError("nothing to evaluate: give --checkpoints FOLDER … or --run_dir FOLDER")
    return found


def stages_for(name: str, config: EvaluationConfig) -> list[str]:
    return {"core": config.core_stages, "chat": config.chat_stages}.get(name, config.stages)


def result_path(checkpoint: str, name: str, config: EvaluationConfig) -> Path:
    as_folder = checkpoint.strip("/").replace("/", "--")
    if config.output_dir:
        several = len(config.checkpoints) > 1 or config.run_dir
        folder = Path(config.output_dir, as_folder if several else "")
    else:
        folder = Path(checkpoint, "eval") if Path(checkpoint).is_dir() else Path("evals", as_folder)
    return folder / f"{name}.json"


def relevant_settings(name: str, config: EvaluationConfig) -> dict[str, Any]:
    values = asdict(config)
    return {key: values[key] for key in (*RELEVANT[name], *ALWAYS_RELEVANT)}


def is_current(checkpoint: str, name: str, config: EvaluationConfig) -> bool:
    """Whether a stored result was made with these settings and is newer than the weights."""
    path = result_path(checkpoint, name, config)
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if not stored or stored.get("config") != relevant_settings(name, config):
        return False
    if stored.get("checkpoint") != checkpoint:
        return False
    weights = [file.stat().st_mtime for file in Path(checkpoint).glob("*.safetensors")]
    return path.stat().st_mtime >= max(weights, default=0.0)


def result_table(result: dict[str, Any]) -> str:
    """The result as lines for the terminal."""
    metrics, tasks = result["metrics"], result["details"].get("tasks", [])
    width = max([len(row["task"]) for row in tasks] + [20])
    lines = [
        f"  {row['task']:<{width}} {100 * row['accuracy']:6.1f} %   "
        f"[{100 * row['accuracy_low']:.1f}, {100 * row['accuracy_high']:.1f}]   centred {row['centered']:+.4f}   "
        f"{row['items']} items" + (f", {row['truncated']} truncated" if row.get("truncated") else "")
        for row in tasks
    ]
    for name in ("bits_per_byte", "bytes_per_token", "core", "core_corrected", "chatcore"):
        if name in metrics:
            low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
            lines.append(f"  {name:<{width}} {metrics[name]:8.4f}" + (f"   [{low:.4f}, {high:.4f}]" if high else ""))
    return "\n".join(lines)


def say(text: str) -> None:
    if distributed_rank()[0] == 0:
        print(text, flush=True)
