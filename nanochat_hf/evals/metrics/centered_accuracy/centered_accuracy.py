"""Mean centered accuracy as an `evaluate` module: `evaluate.load("evaluation/metrics/centered_accuracy")`."""

import datasets
import evaluate

from .formulas import centered, mean_centered

DESCRIPTION = """The mean over tasks of (accuracy - chance) / (1 - chance): 0 is guessing, 1 is perfect. CORE is this
mean over the 22 in-context-learning tasks of DataComp-LM (arXiv:2406.11794, section 3.5)."""

INPUTS = """
Args:
    predictions: accuracy of each task, 0 to 1.
    references: chance accuracy of each task, at least 0 and below 1.

Returns:
    centered_accuracy: the mean over the tasks.
    centered: one value per task.

Raises:
    ValueError: there is no task, or a value is out of its range (such as an accuracy in percent).

Examples:
    >>> metric = evaluate.load("evaluation/metrics/centered_accuracy")
    >>> metric.compute(predictions=[0.625, 0.25], references=[0.25, 0.0])
    {'centered_accuracy': 0.375, 'centered': [0.5, 0.25]}
"""

CITATION = """
@article{li2024datacomp,
    title={DataComp-LM: In search of the next generation of training sets for language models},
    author={Li, Jeffrey and Fang, Alex and Smyrnis, Georgios and Ivgi, Maor and Jordan, Matt and others},
    journal={arXiv preprint arXiv:2406.11794},
    year={2024}
}
"""


class CenteredAccuracy(evaluate.Metric):
    """The metric; see `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
        )
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=INPUTS, features=features
        )

    def _compute(self, predictions, references) -> dict[str, float | list[float]]:
        if not len(predictions):
            raise ValueError("the mean centered accuracy needs at least one task")
        if any(not 0 <= chance < 1 for chance in references):
            raise ValueError("references are chance accuracies: give fractions from 0 to below 1")
        if any(not 0 <= accuracy <= 1 for accuracy in predictions):
            raise ValueError("predictions are accuracies: give fractions from 0 to 1, not percent")
        by_task = [centered(accuracy, chance) for accuracy, chance in zip(predictions, references, strict=True)]
        return {"centered_accuracy": mean_centered(predictions, references), "centered": by_task}
