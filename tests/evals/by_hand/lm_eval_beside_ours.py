"""lm-eval on the same items as this project's evaluation: the same verdicts, and the same log-likelihoods.

python -m venv LM && LM/bin/pip install lm-eval .                                       # an environment of its own
LM/bin/python tests/evals/by_hand/lm_eval_beside_ours.py runs/quickstart/rl             # microworld, 40 items each
LM/bin/python tests/evals/by_hand/lm_eval_beside_ours.py runs/d12/sft 100 mmlu=DIR arc-easy=DIR

Completion tasks: those of the microworld's bundle, few-shot examples included. Exams: the tasks named on the command
line, as chats up to the answer's letter. lm-eval gets the prompts as text and encodes them itself.
"""

import json
import sys
import tempfile
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from nanochat_hf import tasks as chat_tasks
from nanochat_hf.evals import core
from nanochat_hf.evals.bundle import load_bundle
from nanochat_hf.evals.evaluated_model import EvaluatedModel, load_evaluated_model
from nanochat_hf.evals.microworld_bundle import write_bundle
from nanochat_hf.evals.scoring import Span, score_groups
from nanochat_hf.evals.tasks import evaluate_choice

BOS = "<|bos|>"
CHOICES = "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: gold"
GREEDY = 'output_type: loglikelihood\ndoc_to_target: "{{choices[0]}}"'


def completion_rows(task: core.CoreTask) -> list[dict]:
    """Context, options and the right one's index of every item.

    The space before an option is the option's, as lm-eval has it. Where the text between them were a token of both,
    lm-eval would read half of it.
    """
    rows = []
    for index, item in enumerate(task.items):
        texts = core.render(task, item, core.fewshot_examples(task, index))
        if task.kind == "multiple_choice":
            context = texts[0].removesuffix(item["choices"][0]).rstrip()
            options, gold = [text.removeprefix(context) for text in texts], item["gold"]
        else:
            context, gold = texts[0], 0
            options = [texts[1].removeprefix(context)]
        rows.append({"text": BOS + context, "choices": options, "gold": gold})
    return rows


def exam_rows(evaluated: EvaluatedModel, task: chat_tasks.Task) -> list[dict]:
    """The same for an exam, whose options are letters."""
    rows = []
    for index in range(len(task)):
        example = task[index]
        text = evaluated.tokenizer.decode(evaluated.prompt_ids(example["messages"][:-1]))
        gold = [task.score(example, letter) for letter in example["letters"]].index(1.0)
        rows.append({"text": text, "choices": list(example["letters"]), "gold": gold})
    return rows


def our_scores(evaluated: EvaluatedModel, rows: list[dict]) -> list[list[tuple[float, bool]]]:
    """Per item and option: log-likelihood, and whether it is greedy; by this project's scoring."""
    spans = []
    for row in rows:
        begin = evaluated.tokenizer(row["text"])["input_ids"]
        whole = [evaluated.tokenizer(row["text"] + choice)["input_ids"] for choice in row["choices"]]
        spans.append([Span(ids, len(begin), len(ids)) for ids in whole])
    found = [[(0.0, False)] * len(group) for group in spans]
    for batch in score_groups(evaluated.model, spans):
        for item, scores in batch:
            sizes = [span.end - span.start for span in spans[item]]
            pairs = zip(scores, sizes, strict=True)
            found[item] = [(-score.mean_loss * size, score.is_greedy) for score, size in pairs]
    return found


def main() -> None:
    checkpoint, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 40
    evaluated = load_evaluated_model(checkpoint, device="cpu", dtype="float32")
    rows: dict[str, list[dict]] = {}
    verdicts: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for task in load_bundle(write_bundle(folder), max_per_task=count):
            if task.kind != "schema":
                rows[task.label] = completion_rows(task)
                verdicts[task.label] = core.evaluate_task(evaluated.model, evaluated.encode, task).outcomes
        for spec in sys.argv[3:] or ["microworld-exam"]:
            exam, _ = chat_tasks.load(spec, "test", count)
            rows[exam.name] = exam_rows(evaluated, exam)
            verdicts[exam.name] = evaluate_choice(evaluated, exam).outcomes
        for name, items in rows.items():
            Path(folder, f"{name}.json").write_text(json.dumps(items))
            form = CHOICES if len(items[0]["choices"]) > 1 else GREEDY
            source = f"dataset_path: json\ndataset_kwargs: {{data_files: {folder}/{name}.json}}\ntest_split: train"
            text = 'doc_to_text: text\ntarget_delimiter: ""\nmetric_list: [{metric: acc}]'
            Path(folder, f"{name}.yaml").write_text(f"task: {name}\n{source}\n{text}\n{form}\n")
        manager = TaskManager(include_path=folder, include_defaults=False)
        # Without a limit, as `evaluate_task` above: few-shot examples may be longer than the trained context.
        made = simple_evaluate(
            model="hf",
            model_args=f"pretrained={checkpoint},dtype=float32,max_length=2048",
            device="cpu",
            batch_size=1,
            tasks=[*rows],
            task_manager=manager,
            bootstrap_iters=0,
            log_samples=True,
        )
    worst = 0.0
    for name, items in rows.items():
        samples = sorted(made["samples"][name], key=lambda sample: sample["doc_id"])
        ours = our_scores(evaluated, items)
        theirs = [[response[0] for response in sample["resps"]] for sample in samples]
        for one, other in zip(sum(ours, []), sum(theirs, []), strict=True):
            worst = max(worst, abs(one[0] - float(other[0])))
        if len(items[0]["choices"]) > 1:  # by the sum of the log-likelihoods, which is lm-eval's rule
            best = [max(range(len(group)), key=lambda option, group=group: group[option][0]) for group in ours]
            by_sum = [float(one == item["gold"]) for one, item in zip(best, items, strict=True)]
        else:
            by_sum = [float(group[0][1]) for group in ours]
        acc = [float(sample["acc"]) for sample in samples]
        same = sum(a == b for a, b in zip(by_sum, acc, strict=True))
        own = sum(a == b for a, b in zip(verdicts[name], acc, strict=True))
        count, mine = len(items), sum(verdicts[name]) / len(items)
        print(f"{name:26} {count:4} items: lm-eval {sum(acc) / count:.4f}, ours {mine:.4f}; ", end="")
        print(f"the same verdict on {same} by its rule, on {own} by ours", flush=True)
        assert same == len(items), name
        if items[0]["choices"][0] in ("A", "B") or len(items[0]["choices"]) == 1:
            assert own == len(items), name  # one token per option, or greedy: the rules are the same
    print(f"log-likelihoods differ by at most {worst:.2g}")
    assert worst < 1e-3


if __name__ == "__main__":
    main()
