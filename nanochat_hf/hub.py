"""Publishes a checkpoint on the Hugging Face Hub, with a model card made from what the run recorded.

    nanochat-hf push runs/quickstart/rl your-name/your-model --private
    nanochat-hf push runs/quickstart/rl your-name/your-model --dry_run      # shows the files and the card
    nanochat-hf push runs/quickstart/rl your-name/your-model --space        # and a Space to chat with it

Only safetensors, JSON, Jinja, YAML, Markdown, pictures (PNG) and the model's own Python files are sent: no pickles, no
trainer state.
The token comes from `hf auth login` or HF_TOKEN, and from nowhere else.
"""

import argparse
import importlib.util
import json
import math
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat_hf import settings
from nanochat_hf.evals.headlines import HEADLINE_TITLES
from nanochat_hf.report.markdown import answer_text, fenced
from nanochat_hf.report.plots import draw_plots
from nanochat_hf.report.stages import Stage, describe_machine, load_stage
from nanochat_hf.settings import MODEL_FOLDERS, Parser, UserError, stage_folder, without_paths
from nanochat_hf.tools.presentation import plain_text

REQUIRED = ("config.json", "tokenizer.json")
PUBLISHED = (
    re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors"),
    re.compile(r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map)\.json"),
    re.compile(r"model\.safetensors\.index\.json"),
    re.compile(r"chat_template\.jinja"),
    re.compile(r"\w+_nanochat_hf\.py"),
)
WEIGHTS = PUBLISHED[0]
# Benchmarks that the Hub shows on a model's page: our task's name → (the Hub's name of it, items of its test split).
HUB_BENCHMARKS = {"gsm8k": ("gsm8k", 1319)}
# Where our tasks come from: name → (Hub id of the data set, its configuration).
HUB_DATA_SETS = {
    "gsm8k": ("openai/gsm8k", "main"),
    "mmlu": ("cais/mmlu", "all"),
    "arc-easy": ("allenai/ai2_arc", "ARC-Easy"),
    "arc-challenge": ("allenai/ai2_arc", "ARC-Challenge"),
    "humaneval": ("openai/openai_humaneval", "openai_humaneval"),
}
PICTURES = ("scores.png", "loss.png")  # of the report's pictures, those of the card

USAGE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "{repo_id}"
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)
messages = [{{"role": "user", "content": "Hello! Who are you?"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs, max_new_tokens=128)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

`trust_remote_code=True` runs the Python files of this repository; pin a commit with `revision=` in production. With
the package nanochat-hf installed, `import nanochat_hf` makes it unnecessary. `nanochat-hf chat {repo_id}` adds the
calculator that the model was trained to use."""

INTENDED_USE = """\
For learning how language models are trained, for experiments and for teaching. It is meant to be read, changed,
trained further and measured: load it with transformers, fine-tune it with TRL, or take the recipe below and train your
own.

It is not meant for products, for advice (medical, legal, financial or other), for decisions about people, or as a
source of facts."""

BASE_MODEL_USE = """\
This is a base model: it continues text. It has not learnt to chat."""

LIMITS = """\
This is a small model trained from scratch. It makes things up, knows little outside its training data, and has had no
safety training. It answers in the language of its data, within {context} tokens of context. It repeats what its data
holds, prejudice included. Do not use it where a wrong answer does harm."""


def files_to_publish(folder: str | os.PathLike) -> list[Path]:
    """The files of a checkpoint folder that belong on the Hub, sorted by name.

    Raises:
        UserError: there is no such folder, or it is not a whole checkpoint.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give a checkpoint folder such as runs/quickstart/rl")
    found = sorted(
        path for path in folder.iterdir() if path.is_file() and any(rule.fullmatch(path.name) for rule in PUBLISHED)
    )
    names = {path.name for path in found}
    missing = [name for name in REQUIRED if name not in names]
    if not any(WEIGHTS.fullmatch(name) for name in names):
        missing.append("model.safetensors")
    if "config.json" in names:
        mapped = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map") or {}
        code = {f"{reference.split('.')[0]}.py" for reference in mapped.values()}
        unread = code & names
        while unread:
            text = (folder / unread.pop()).read_text(encoding="utf-8")
            imported = {f"{module}.py" for module in re.findall(r"^from \.(\w+) import", text, re.MULTILINE)}
            unread |= (imported - code) & names
            code |= imported
        missing += sorted(code - names)
    if missing:
        raise UserError(
            f"{folder} is not a whole checkpoint: it lacks {', '.join(missing)}; give the folder of a finished stage"
        )
    return found


def model_card(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    license: str = "apache-2.0",
    language: str = "en",
    pictures: Sequence[tuple[str, str]] = (),
) -> str:
    """The model card: metadata, introduction, usage, a sample, results with pictures, recipe, intended use and limits.

    Args:
        folder: the checkpoint folder of a stage, with its `run.json` and `eval/`.
        repo_id: owner/name on the Hub.
        license: licence of the weights.
        language: language of the training data, as a code such as "en".
        pictures: path in the repository and caption of each picture.

    Raises:
        UserError: the folder is not a whole checkpoint.
    """
    from huggingface_hub import EvalResult, ModelCardData

    folder = stage_folder(folder)
    stage = load_stage(folder.parent, folder.name)
    model_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = repo_id.split("/")[-1]
    data = ModelCardData(
        language=language,
        license=license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["nanochat", "nanochat-hf", "chat" if stage.name != "base" else "base"],
        model_name=name,
        eval_results=[EvalResult(**result) for result in _model_index(stage)] or None,
    )
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        _introduction(stage, model_config, folder),
        "## Use",
        USAGE.format(repo_id=repo_id),
        *_sample(stage),
        *_results(stage),
        *(f"![{caption}]({path})" for path, caption in pictures),
        *_recipe(stage),
        "## Intended use",
        INTENDED_USE,
        *([BASE_MODEL_USE] if stage.name == "base" else []),
        "## Limits",
        LIMITS.format(context=f"{model_config.get('max_position_embeddings', 2048):,}"),
    ]
    return "\n\n".join(sections) + "\n"


def draw_pictures(folder: str | os.PathLike) -> tuple[dict[str, bytes], list[tuple[str, str]]]:
    """The card's pictures, drawn from what the stages up to this one recorded.

    Returns:
        path in the repository → PNG, and (path, caption) of each. Nothing where matplotlib is not installed.
    """
    folder = stage_folder(folder)
    if folder.name not in MODEL_FOLDERS or not importlib.util.find_spec("matplotlib"):
        return {}, []
    names = MODEL_FOLDERS[: MODEL_FOLDERS.index(folder.name) + 1]
    files, captions = {}, []
    with tempfile.TemporaryDirectory() as temporary:
        drawn = dict(draw_plots([load_stage(folder.parent, name) for name in names], Path(temporary)))
        for name in PICTURES:
            if name in drawn:
                files[f"plots/{name}"] = Path(temporary, name).read_bytes()
                captions.append((f"plots/{name}", drawn[name]))
    return files, captions


def eval_results_files(stage: Stage, repo_id: str) -> dict[str, str]:
    """Files `.eval_results/TASK.yaml` for the benchmarks that the Hub knows, as path → content.

    Only the whole test split, read from the benchmark's own data set, gets a file.
    """
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    files = {}
    for task, row in stage.tasks("chat").items():
        name, items = HUB_BENCHMARKS.get(task, ("", 0))
        data_set, _, split = _data_set(stage, task)
        if name and (data_set, split, row["items"]) == (HUB_DATA_SETS[task][0], "test", items):
            entry = EvalResultEntry(
                data_set,
                name,
                round(100 * row["accuracy"], 2),
                date=stage.evaluations["chat"].get("date"),
                source_url=f"https://huggingface.co/{repo_id}",
                source_name="Model card",
                notes=f"{row['items']} problems, zero-shot chat, nanochat-hf, 95 % interval {_percent_interval(row)}",
            )
            text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
            files[f".eval_results/{task}.yaml"] = text
    return files


def push(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    license: str = "apache-2.0",
    message: str = "Upload checkpoint",
    dry_run: bool = False,
    space: bool = False,
) -> str:
    """Publishes a checkpoint folder in one commit.

    Args:
        folder: the checkpoint folder of a stage.
        repo_id: owner/name on the Hub; the repository is made where it is missing.
        private: makes a new repository private.
        revision: branch to push to, made where it is missing. One repository can have one branch per stage.
        license: licence of the weights, for the card.
        message: commit message.
        dry_run: prints the files and the card, and publishes nothing.
        space: also makes a Space of the same name, which chats with the model at this commit.

    Returns:
        The address of the commit, or of the Space; "" for a dry run.

    Raises:
        UserError: the id is malformed, the folder is not a whole checkpoint, or the Hub refuses or cannot be reached.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise UserError(f"{repo_id!r} is not a repository id; write it as owner/name")
    files = files_to_publish(folder)
    folder = stage_folder(folder)
    stage = load_stage(folder.parent, folder.name)
    drawings, captions = draw_pictures(folder)
    card = model_card(folder, repo_id, license=license, pictures=captions)
    texts = {"README.md": card, **eval_results_files(stage, repo_id)}
    if dry_run:
        if space:
            from nanochat_hf.page.deploy import space_files

            print(f"the Space {repo_id}:")
            for name, content in space_files(folder, repo_id, "0" * 40).items():
                print(f"{name:60} {len(content) / 1e6:10.2f} MB")
            print(f"\nthe model {repo_id}:")
        for path in files:
            print(f"{path.name:40} {path.stat().st_size / 1e6:10.2f} MB")
        for name, content in [*drawings.items(), *((name, text.encode()) for name, text in texts.items())]:
            print(f"{name:40} {len(content) / 1e6:10.2f} MB")
        print(f"\n{texts['README.md']}")
        return ""

    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    operations = [CommitOperationAdd(path.name, str(path)) for path in files]
    operations += [CommitOperationAdd(name, picture) for name, picture in drawings.items()]
    operations += [CommitOperationAdd(name, text.encode()) for name, text in texts.items()]
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision)
        if space:
            from nanochat_hf.page.deploy import space_files

            sent = space_files(folder, repo_id, str(commit.oid))
            parts = [CommitOperationAdd(name, content) for name, content in sent.items()]
            api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
            api.create_commit(repo_id, parts, commit_message=message, repo_type="space")
            return f"{api.endpoint}/spaces/{repo_id}"
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        advice = "log in with `hf auth login` or set HF_TOKEN" if status in (401, 403) else "try again later"
        raise UserError(f"the Hub refused {repo_id} ({str(error).splitlines()[0]}); {advice}") from error
    except OSError as error:
        raise UserError(f"cannot reach the Hub ({error}); check the network and try again") from error
    return str(commit.commit_url)


def main(argv: list[str] | None = None) -> None:
    """`nanochat-hf push`."""
    parser = Parser(prog="nanochat-hf push", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="checkpoint folder, such as runs/quickstart/rl")
    parser.add_argument("repo_id", help="owner/name on the Hub; the repository is made where it is missing")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch to push to; made where it is missing")
    parser.add_argument("--license", default="apache-2.0", help="licence of the weights (default: apache-2.0)")
    parser.add_argument("--message", default="Upload checkpoint", help="commit message")
    parser.add_argument("--space", action="store_true", help="also make a Space of the same name, to chat with it")
    parser.add_argument("--dry_run", action="store_true", help="show the files and the card, publish nothing")
    options = vars(parser.parse_args(argv))
    address = push(options.pop("folder"), options.pop("repo_id"), **options)
    if address:
        print(address)


# ---- the card's parts --------------------------------------------------------------


def _introduction(stage: Stage, config: dict[str, Any], folder: Path) -> str:
    from safetensors import safe_open

    count = 0
    for path in files_to_publish(folder):
        if WEIGHTS.fullmatch(path.name):
            with safe_open(path, "pt") as weights:
                for key in weights.keys():
                    count += math.prod(weights.get_slice(key).get_shape())
    steps = {"base": "pretrained", "mid": "mid-trained", "sft": "fine-tuned on conversations", "rl": "trained with RL"}
    steps["dpo"] = "trained on preferences"
    return (
        f"A nanochat-style language model, {steps.get(stage.name, stage.name)}: {count / 1e6:,.1f} M parameters, "
        f"{config.get('num_hidden_layers')} layers, width {config.get('hidden_size')}, "
        f"vocabulary {config.get('vocab_size'):,}. Made with nanochat-hf."
    )


def _model_index(stage: Stage) -> list[dict[str, Any]]:
    """Entries of the card's `model-index`, which the Hub shows as a table: one per task and per headline metric."""
    found = []
    for evaluation in ("core", "chat"):
        for task, row in stage.tasks(evaluation).items():
            data_set, configuration, split = _data_set(stage, task) if evaluation == "chat" else (task, None, None)
            found.append(
                {
                    "dataset_type": data_set,
                    "dataset_name": task,
                    "dataset_config": configuration,
                    "dataset_split": split,
                    "dataset_args": {"num_few_shot": row.get("num_fewshot", 0)},
                    "metric_type": "accuracy",
                    "metric_value": round(row["accuracy"], 4),
                    "metric_name": f"accuracy, {row['items']} items, 95 % interval {_percent_interval(row)}",
                }
            )
    for metric, title in HEADLINE_TITLES.items():
        if metric in stage.metrics:
            interval = _interval(stage, metric)
            found.append(
                {
                    "dataset_type": metric,
                    "dataset_name": title,
                    "metric_type": metric,
                    "metric_value": round(stage.metrics[metric], 4),
                    "metric_name": f"{title}, 95 % interval {interval}" if interval else title,
                }
            )
    return [{"task_type": "text-generation", **entry} for entry in found]


def _data_set(stage: Stage, task: str) -> tuple[str, str | None, str | None]:
    """Where the items of a chat task came from: (data set, its configuration, split).

    The data set is the Hub's only where the task was read from there; else it has the task's name. The split is None
    where two tasks have that name, or none was asked for by it.
    """
    from nanochat_hf import tasks

    evaluation = stage.evaluations["chat"]
    config, rows = evaluation.get("config", {}), evaluation["details"]["tasks"]
    specs = [tasks.parts_of(spec) for spec in tasks.separate(config.get("tasks") or [])]
    named = [parts for parts in specs if parts["name"] == task]
    if len(named) != 1 or [row["task"] for row in rows].count(task) != 1:
        return task, None, None
    data_set, configuration = HUB_DATA_SETS.get(task, (task, None))
    split = named[0]["split"] or config.get("split")
    own = named[0]["source"] in (None, data_set)
    return (data_set, configuration, split) if own else (task, None, split)


def _interval(stage: Stage, metric: str) -> str:
    low, high = (stage.metrics.get(f"{metric}_{side}") for side in ("low", "high"))
    return f"{low:.4f} to {high:.4f}" if low is not None and high is not None else ""


def _percent_interval(row: dict[str, Any]) -> str:
    return f"{100 * row['accuracy_low']:.1f} to {100 * row['accuracy_high']:.1f} %"


def _sample(stage: Stage) -> list[str]:
    """A conversation from the evaluation, unedited: a right answer with a tool call, else a right one, else any."""
    samples = stage.evaluations.get("chat", {}).get("details", {}).get("samples", {})
    shown = [sample for of_task in samples.values() for sample in of_task]
    if not shown:
        return []
    best = max(shown, key=lambda sample: (sample["score"] > 0, "parts" in sample))
    turns = [*((message["role"], plain_text(message["content"])) for message in best["prompt"])]
    lines = [f"[{role}] {text}" for role, text in [*turns, ("assistant", answer_text(best))]]
    verdict = "right" if best["score"] > 0 else "wrong"
    tool = " ⟨expression = result⟩ is a call of the calculator, which the model makes." if "parts" in best else ""
    return [
        "## A conversation",
        f"From the evaluation, unedited; the answer is {verdict}.{tool}",
        fenced("\n\n".join(lines)),
    ]


def _results(stage: Stage) -> list[str]:
    rows = []
    for metric, title in HEADLINE_TITLES.items():
        if metric in stage.metrics:
            rows.append(f"| {title} | {stage.metrics[metric]:.4f} | {_interval(stage, metric)} | |")
    for evaluation in ("chat", "core"):
        for task, row in stage.tasks(evaluation).items():
            rows.append(f"| {task} | {100 * row['accuracy']:.1f} % | {_percent_interval(row)} | {row['items']} |")
    if not rows:
        return []
    table = "\n".join(["| metric | value | 95 % interval | items |", "| --- | ---: | ---: | ---: |", *rows])
    commits = {r.get("environment", {}).get("git_commit") for r in stage.evaluations.values()} - {None}
    harness = "Measured with nanochat-hf"
    if commits:
        harness += f", commit {', '.join(sorted(commit[:12] for commit in commits))}"
    return ["## Results", table, f"{harness}. The intervals cover other items, not other training runs (one seed)."]


def _recipe(stage: Stage) -> list[str]:
    if not stage.run:
        return []
    machine = describe_machine(stage.run.get("environment", {}))
    spent = f"{stage.run['seconds'] / 60:.1f} minutes on {machine}" if stage.run.get("seconds") else machine
    chosen = {name: value for name, value in stage.run.get("config", {}).items() if value is not None}
    settings_text = json.dumps(without_paths(chosen), indent=2, ensure_ascii=False, default=str)
    return ["## Recipe", f"Last stage: {spent}.", f"```json\n{settings_text}\n```"]


if __name__ == "__main__":
    settings.run_main(main)
