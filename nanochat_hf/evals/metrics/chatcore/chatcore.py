"""ChatCORE as an `evaluate` module: `evaluate.load("evaluation/metrics/chatcore")`."""

import datasets
import evaluate

from .formulas import mean, mean_centered_of_items

DESCRIPTION = """The mean centered accuracy of a chat model over tasks, from the scores of single items, with a 95 %
interval. nanochat's ChatCORE has the tasks ARC-Easy, ARC-Challenge, MMLU, GSM8K, HumanEval and SpellingBee. The number
depends on the tasks: name them whenever you quote it."""

INPUTS = """
Args:
    predictions: score of each item, 0 to 1 (the mean over its samples).
    references: name of the task of each item.
    baselines: task → chance accuracy. Tasks that it does not name have chance 0. The default names nanochat's exams:
        arc-easy, arc-challenge and mmlu, each with 0.25.

Returns:
    chatcore: the mean over tasks of (accuracy - chance) / (1 - chance).
    chatcore_low, chatcore_high: its 95 % interval, by a bootstrap over the items of each task.
    accuracy: task → mean score.

Raises:
    ValueError: there is no item, or a value is out of its range.

Examples:
    >>> metric = evaluate.load("evaluation/metrics/chatcore")
    >>> found = metric.compute(predictions=[1.0, 1.0, 0.0, 1.0], references=["mmlu", "mmlu", "gsm8k", "gsm8k"])
    >>> found["chatcore"], found["accuracy"]
    (0.75, {'mmlu': 1.0, 'gsm8k': 0.5})
"""

CITATION = """
@misc{karpathy2025nanochat,
    title={nanochat: The best ChatGPT that \\$100 can buy},
    author={Karpathy, Andrej},
    year={2025},
    howpublished={https://github.com/karpathy/nanochat},
    note={The centering is that of DataComp-LM, arXiv:2406.11794}
}
"""

BASELINES = {"arc-easy": 0.25, "arc-challenge": 0.25, "mmlu": 0.25}


class ChatCore(evaluate.Metric):
    """The metric; see `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"predictions": datasets.Value("float64"), "references": datasets.Value("string")}
        )
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=INPUTS, features=features
        )

    def _compute(self, predictions, references, baselines=None) -> dict[str, float | dict[str, float]]:
        baselines = BASELINES if baselines is None else baselines
        if not len(predictions):
            raise ValueError("ChatCORE needs at least one item")
        if any(not 0 <= score <= 1 for score in predictions):
            raise ValueError("predictions are scores: give fractions from 0 to 1, not percent")
        if any(not 0 <= chance < 1 for chance in baselines.values()):
            raise ValueError("baselines are chance accuracies: give fractions from 0 to below 1")
        scores: dict[str, list[float]] = {}
        for score, task in zip(predictions, references, strict=True):
            scores.setdefault(task, []).append(score)
        chance = [baselines.get(task, 0.0) for task in scores]
        found = mean_centered_of_items("chatcore", list(scores.values()), chance)
        return found | {"accuracy": {task: mean(items) for task, items in scores.items()}}
