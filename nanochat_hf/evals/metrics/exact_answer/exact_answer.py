"""Exact-answer accuracy as an `evaluate` module: `evaluate.load("evaluation/metrics/exact_answer")`."""

import datasets
import evaluate

from .formulas import accuracy_with_interval, exact_answers

DESCRIPTION = """The share of answers that equal their reference exactly, with its 95 % Wilson interval. White space
around an answer does not count. Give extracted answers, such as the letters of an exam or GSM8K's final numbers."""

INPUTS = """
Args:
    predictions: the answers.
    references: the right answers.

Returns:
    accuracy: share of right answers.
    accuracy_low, accuracy_high: its 95 % Wilson interval.

Raises:
    ValueError: there is no answer.

Examples:
    >>> metric = evaluate.load("evaluation/metrics/exact_answer")
    >>> found = metric.compute(predictions=["72", "A", " 5 "], references=["72", "B", "5"])
    >>> {name: round(value, 3) for name, value in found.items()}
    {'accuracy': 0.667, 'accuracy_low': 0.208, 'accuracy_high': 0.939}
"""

CITATION = """
@article{wilson1927probable,
    title={Probable Inference, the Law of Succession, and Statistical Inference},
    author={Wilson, Edwin B.},
    journal={Journal of the American Statistical Association},
    volume={22},
    pages={209--212},
    year={1927}
}
"""


class ExactAnswer(evaluate.Metric):
    """The metric; see `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=INPUTS, features=features
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        if not len(predictions):
            raise ValueError("exact-answer accuracy needs at least one answer")
        return accuracy_with_interval(exact_answers(predictions, references))
