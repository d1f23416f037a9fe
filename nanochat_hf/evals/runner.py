"""Runs evaluations on checkpoints: what the scripts of `evaluation/` share.

Each evaluation of a checkpoint folder writes `eval/<name>.json` into it: flat `metrics` for tables, `details`, the
settings and the environment.
"""

import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from nanochat_hf import settings
from nanochat_hf.data import fingerprints
from nanochat_hf.data.fingerprints import Fingerprint
from nanochat_hf.evals import bits_per_byte as bpb
from nanochat_hf.evals import core, strangers
from nanochat_hf.evals import tasks as task_scores
from nanochat_hf.evals.bundle import PUBLISHED, load_bundle
from nanochat_hf.evals.evaluated_model import EvaluatedModel, load_evaluated_model
from nanochat_hf.evals.evaluation_config import MICROWORLD, TEXT, EvaluationConfig, checkpoints_of, stages_for
from nanochat_hf.evals.headlines import HEADLINE_TITLES
from nanochat_hf.evals.items import pack
from nanochat_hf.evals.scoring import distributed_rank
from nanochat_hf.generation import Sampling, context_length_of, pick_device
from nanochat_hf.generation.sampling import default_sampling, read_sampling
from nanochat_hf.progress import progress_bar
from nanochat_hf.settings import UserError, job_size

TEXT_DOCUMENTS = 500  # the most validation documents that completion tasks are made of


def show_progress(total: int, title: str) -> Any:
    """A bar on the main process, over its own share of `total` items."""
    rank, world = distributed_rank()
    own = len(range(rank, total, world))
    return progress_bar(total=own, desc=title, unit=" items", disable=rank != 0, leave=False)


def input_limit(evaluated: EvaluatedModel, config: EvaluationConfig) -> int | None:
    """Longest input in tokens: `max_length`, else the model's context; None where neither is known."""
    return config.max_length or context_length_of(evaluated.model)


def validation_documents(config: EvaluationConfig) -> Iterator[str]:
    """The documents of the validation split of `data`."""
    from nanochat_hf.data.sources import open_documents

    return open_documents(config.data, "validation", text_column=config.text_column, on_bad_file=config.on_bad_file)


# ---- the three evaluations ---------------------------------------------------------


def run_bits_per_byte(evaluated: EvaluatedModel, config: EvaluationConfig) -> dict[str, Any]:
    """Bits per byte of the validation documents; returns `metrics` and `details`."""
    texts = validation_documents(config)
    texts = [text for text in (texts if config.max_documents < 0 else islice(texts, config.max_documents)) if text]
    if not texts:
        raise UserError(f"{config.data} has no validation documents; give another --data")
    with show_progress(len(texts), f"{evaluated.name} bits per byte") as bar:
        found = bpb.bits_per_byte(
            evaluated.model,
            evaluated.encode,
            texts,
            max_length=input_limit(evaluated, config) or 2048,
            max_tokens=config.max_tokens,
            progress=bar.update,
        )
    names = [name for name in found if name.startswith("bits_per_byte") or name == "bytes_per_token"]
    metrics = {name: found.pop(name) for name in names}
    if math.isinf(metrics["bits_per_byte_high"]):  # a single document has no spread
        del metrics["bits_per_byte_low"], metrics["bits_per_byte_high"]
    return {"metrics": metrics, "details": found}


def run_core(evaluated: EvaluatedModel, config: EvaluationConfig) -> dict[str, Any]:
    """CORE, or the completion tasks of the microworld or of text; returns `metrics` and `details`."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = config.core_bundle
        if bundle == MICROWORLD:
            from nanochat_hf.evals.microworld_bundle import write_bundle

            bundle = write_bundle(folder)
        elif bundle == TEXT:
            from nanochat_hf.evals.text_bundle import write_bundle

            bundle = write_bundle(folder, islice(validation_documents(config), TEXT_DOCUMENTS))
        tasks = load_bundle(bundle, max_per_task=config.max_per_task, labels=config.core_tasks)
    results = []
    for task in tasks:
        with show_progress(len(task.items), f"{evaluated.name} {task.label}") as bar:
            limits = {"max_length": input_limit(evaluated, config), "max_tokens": config.max_tokens}
            results.append(core.evaluate_task(evaluated.model, evaluated.encode, task, progress=bar.update, **limits))
    items = {result.task.label: {"digest": result.digest, "scores": pack(result.outcomes)} for result in results}
    details = {"tasks": [result.row() for result in results], "items": items}
    return {"metrics": core.summarize(results), "details": details}


def leave_out_completion(names: list[str], config: EvaluationConfig) -> list[str]:
    """The evaluations without completion tasks of text, where there is too little of it and others are asked for."""
    if config.core_bundle != TEXT or "core" not in names or len(names) == 1:
        return names
    from nanochat_hf.evals.text_bundle import TooLittleText, long_documents

    try:
        long_documents(islice(validation_documents(config), TEXT_DOCUMENTS))
    except TooLittleText as error:
        print_on_main_process(f"warning: the text completion tasks are left out: {error}")
        return [name for name in names if name != "core"]
    return names


def run_chat(evaluated: EvaluatedModel, config: EvaluationConfig) -> dict[str, Any]:
    """The chat tasks and ChatCORE; returns `metrics` and `details`."""
    tasks = load_tasks(config)
    answers = answer_sampling(config)
    for task in tasks:
        task_scores.check_items(evaluated, task)
    results = []
    for task in tasks:
        with show_progress(len(task), f"{evaluated.name} {task.name}") as bar:
            options: dict[str, Any] = {"progress": bar.update}
            if task.kind == "choice":
                options |= {"max_tokens": config.max_tokens, "max_length": input_limit(evaluated, config)}
                results.append(task_scores.evaluate_choice(evaluated, task, **options))
            else:
                results.append(task_scores.evaluate_generative(evaluated, task, answers, **options))
    details = {
        "prompt_style": evaluated.prompt_style,
        "tasks": [result.row() for result in results],
        "samples": {result.name: result.samples for result in results if result.samples},
        "items": {result.name: {"digest": result.digest, "scores": pack(result.outcomes)} for result in results},
    }
    return {"metrics": task_scores.summarize(results), "details": details}


def run_strangers(evaluated: EvaluatedModel, config: EvaluationConfig) -> dict[str, Any]:
    """The stranger's list at the checkpoint's own default sampling; returns `metrics` and `details`."""
    if not evaluated.is_nanochat:
        raise UserError("the stranger's list asks about the microworld; evaluate a chat checkpoint of the quickstart")
    sampling = default_sampling(evaluated.model) | read_sampling(config.stranger_sampling, "--stranger_sampling")
    total = len(strangers.strangers_list.items()) * config.stranger_samples
    with show_progress(total, f"{evaluated.name} stranger's list") as bar:
        answered = strangers.evaluate(
            evaluated, sampling, num_samples=config.stranger_samples, seed=config.seed, progress=bar.update
        )
    *kinds, whole = strangers.rows(answered, config.stranger_samples)
    metrics = {"strangers": whole["accuracy"], "strangers_low": whole["accuracy_low"]}
    conversations = [
        {"kind": one.item["kind"], "sensible": one.sensible, "messages": one.messages} for one in answered
    ]
    details = {"sampling": sampling, "tasks": kinds, "conversations": conversations}
    return {"metrics": metrics | {"strangers_high": whole["accuracy_high"]}, "details": details}


def answer_sampling(config: EvaluationConfig) -> task_scores.AnswerSampling:
    """The sampling settings of the chat tasks.

    Raises:
        UserError: a value is out of its range.
    """
    try:
        sampling = Sampling(config.max_new_tokens, config.temperature, config.top_k)
    except ValueError as error:
        raise UserError(f"--{error}") from None  # the message begins with the setting's name
    return task_scores.AnswerSampling(sampling, config.num_samples, config.batch_size, config.seed)


def load_tasks(config: EvaluationConfig) -> list[Any]:
    """The chat tasks of the configuration.

    Raises:
        UserError: no task is given, one is unknown or named twice, or one runs generated code without permission.
    """
    from nanochat_hf import tasks

    specs = tasks.separate(config.tasks)
    if not specs:
        raise UserError("no chat tasks are given: name them with --tasks, such as --tasks gsm8k=DIR arc-easy=DIR")
    loaded = [tasks.load(spec, config.split, config.max_problems)[0] for spec in specs]
    named = Counter(task.name for task in loaded)
    for task, spec in zip(loaded, specs, strict=True):
        if named[task.name] > 1 or not task.name:  # results are kept by name
            task.name = settings.without_paths(spec)
    name, count = Counter(task.name for task in loaded).most_common(1)[0]
    if count > 1:
        raise UserError(f"two tasks are called {name}; leave one out, or give its file another name")
    tasks.check_scorers(loaded)
    tasks.check_code_execution(loaded, config.allow_code_execution)
    return tasks.leave_out_unrunnable(loaded, "the evaluation")


EVALUATIONS: dict[str, Callable[[EvaluatedModel, EvaluationConfig], dict[str, Any]]] = {
    "bits_per_byte": run_bits_per_byte,
    "core": run_core,
    "chat": run_chat,
    "strangers": run_strangers,
}
# Settings that decide an evaluation's result. A stored result is kept only while these settings are the same.
DECIDING_SETTINGS = {
    "bits_per_byte": ("data", "max_documents"),
    "core": ("core_bundle", "core_tasks", "max_per_task"),
    "chat": ("tasks", "split", "max_problems", "num_samples", "temperature", "top_k", "max_new_tokens", "seed"),
    "strangers": ("stranger_samples", "stranger_sampling", "seed"),
}
ALWAYS_DECIDING = ("max_length", "dtype", "revision")


# ---- checkpoints and results -------------------------------------------------------


def run_evaluations(config: EvaluationConfig, names: list[str]) -> None:
    """Evaluates every checkpoint of the configuration and writes the results into its folder.

    Args:
        config: the settings.
        names: keys of `EVALUATIONS`.

    Raises:
        UserError: a name is unknown, there is nothing to evaluate, a setting is wrong, or results cannot be written.
    """
    unknown = sorted(set(names) - set(EVALUATIONS))
    if unknown:
        raise UserError(f"there is no evaluation named {', '.join(unknown)}; known are {', '.join(EVALUATIONS)}")
    start_distributed(config)
    names = leave_out_completion(names, config)
    targets = checkpoints_of(config)
    for stage, checkpoint in targets:
        wanted = [name for name in names if stage is None or stage in stages_for(name, config)]
        missing = [name for name in wanted if config.redo or not is_current(checkpoint, name, config)]
        for name in sorted(set(wanted) - set(missing)):
            path = result_path(checkpoint, name, config)
            print_on_main_process(f"{checkpoint}: {name} is already evaluated ({path}); --redo evaluates it again")
        if not missing:
            continue
        settings.check_output_dir(result_path(checkpoint, missing[0], config).parent, unfinished=False)
        evaluated = load_evaluated_model(
            checkpoint,
            device=config.device,
            dtype=config.dtype,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
        for name in missing:
            evaluate_one(evaluated, name, config)
        del evaluated


def evaluate_one(evaluated: EvaluatedModel, name: str, config: EvaluationConfig) -> dict[str, Any]:
    """Runs one evaluation, writes its result as JSON, prints it and returns it."""
    started = time.time()
    result = {"evaluation": name, "checkpoint": evaluated.name} | EVALUATIONS[name](evaluated, config)
    result |= {
        "seconds": time.time() - started,
        "dtype": evaluated.dtype,
        "date": datetime.now(UTC).date().isoformat(),
        "config": deciding_settings(name, config),
        "read": read_for(name, config),
        "environment": settings.environment(),
    }
    if distributed_rank()[0] == 0:
        path = result_path(evaluated.name, name, config)
        settings.write_json(path, result)
        title = f"{evaluated.name}: {evaluation_title(result)}, {result['seconds']:.0f} s, written to {path}"
        print_on_main_process(f"\n{title}\n{result_table(result)}")
    return result


def start_distributed(config: EvaluationConfig) -> None:
    """Joins the processes that `accelerate launch` or `torchrun` started; does nothing for a single one."""
    if job_size() > 1:
        from accelerate import PartialState

        PartialState(cpu=pick_device(config.device).type == "cpu")


def result_path(checkpoint: str, name: str, config: EvaluationConfig) -> Path:
    """Where the result of an evaluation is written."""
    as_folder = checkpoint.strip("/").replace("/", "--")
    if config.output_dir:
        several = len(config.checkpoints) > 1 or config.run_dir
        folder = Path(config.output_dir, as_folder if several else "")
    else:
        folder = Path(checkpoint, "eval") if Path(checkpoint).is_dir() else Path("evals", as_folder)
    return folder / f"{name}.json"


def deciding_settings(name: str, config: EvaluationConfig) -> dict[str, Any]:
    """The settings that decide the result of an evaluation."""
    values = asdict(config)
    made_of = ("data",) if name == "core" and config.core_bundle == TEXT else ()
    names = [*DECIDING_SETTINGS[name], *made_of, *ALWAYS_DECIDING]
    if "data" in names and config.text_column:  # stored results without a column stay valid
        names.append("text_column")
    return {key: values[key] for key in names}


def read_for(name: str, config: EvaluationConfig) -> list[Fingerprint]:
    """The fingerprints of what an evaluation reads: files of tasks, texts or the bundle."""
    if name == "chat":
        from nanochat_hf import tasks

        return tasks.fingerprints_of(config.tasks)
    if name == "bits_per_byte" or (name == "core" and config.core_bundle == TEXT):
        return fingerprints.of_text(config.data)
    own_bundle = name == "core" and config.core_bundle not in (MICROWORLD, PUBLISHED)
    return [fingerprints.of_files(config.core_bundle)] if own_bundle else []


def is_current(checkpoint: str, name: str, config: EvaluationConfig) -> bool:
    """Whether a stored result was made with these settings on this data and is not older than the weights.

    Results of older versions do not say what they read.
    """
    path = result_path(checkpoint, name, config)
    try:
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError:  # damaged: it is made again
        return False
    if not isinstance(stored, dict) or stored.get("config") != deciding_settings(name, config):
        return False
    if stored.get("checkpoint") != checkpoint:
        return False
    if "read" in stored and (change := fingerprints.difference(stored["read"], read_for(name, config))):
        print_on_main_process(f"{checkpoint}: {name} is evaluated again: {change}")
        return False
    weights = [file.stat().st_mtime for file in Path(checkpoint).glob("*.safetensors")]
    return path.stat().st_mtime >= max(weights, default=0.0)


def evaluation_title(result: dict[str, Any]) -> str:
    """An evaluation's title for people: bits per byte, CORE, microworld completion tasks or chat tasks."""
    if result["evaluation"] == "core":
        return next((HEADLINE_TITLES[name] for name in result["metrics"] if name in HEADLINE_TITLES), "CORE")
    return {"bits_per_byte": "bits per byte", "chat": "chat tasks", "strangers": "stranger's list"}[
        result["evaluation"]
    ]


def result_table(result: dict[str, Any]) -> str:
    """The result as lines for the terminal."""
    metrics, tasks = result["metrics"], result["details"].get("tasks", [])
    titles = {name: title for name, title in HEADLINE_TITLES.items() if name in metrics}
    titles |= {"bytes_per_token": "bytes per token"} if "bytes_per_token" in metrics else {}
    width = max(map(len, [*(row["task"] for row in tasks), *titles.values()]))
    cut = "too long for the context: their beginning is cut"
    lines = [
        f"  {row['task']:<{width}} {100 * row['accuracy']:6.1f} %   "
        f"[{100 * row['accuracy_low']:.1f}, {100 * row['accuracy_high']:.1f}]   centered {row['centered']:+.4f}   "
        f"{row['items']} items" + (f", {row['truncated']} {cut}" if row.get("truncated") else "")
        for row in tasks
    ]
    for name, title in titles.items():
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        interval = f"   [{low:.4f}, {high:.4f}]" if high is not None else ""
        lines.append(f"  {title:<{width}} {metrics[name]:8.4f}{interval}")
    return "\n".join(lines)


def print_on_main_process(text: str) -> None:
    """Prints on one process only."""
    if distributed_rank()[0] == 0:
        print(text, flush=True)
