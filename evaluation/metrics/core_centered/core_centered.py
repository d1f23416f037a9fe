"""Mean centered accuracy as an `evaluate` module: `evaluate.load("evaluation/metrics/core_centered")`."""

import datasets
import evaluate
import numpy as np

DESCRIPTION = """The mean over tasks of (accuracy - chance) / (1 - chance): 0 is guessing, 1 is perfect. CORE is this
mean over the 22 in-context-learning tasks of DataComp-LM (arXiv:2406.11794, section 3.5)."""

INPUTS = """
Args:
    predictions: accuracy of each task, 0 to 1.
    references: chance accuracy of each task, at least 0 and below 1.

Returns:
    core_centered: the mean over the tasks.
    centered: one value per task.

Raises:
    ValueError: there is no task, or a value is out of its range (such as an accuracy in percent).

Examples:
    >>> metric = evaluate.load("evaluation/metrics/core_centered")
    >>> metric.compute(predictions=[0.625, 0.3], references=[0.25, 0.0])
    {'core_centered': 0.4, 'centered': [0.5, 0.3]}
"""

CITATION = """
@article{li2024datacomp,
    title={DataComp-LM: In search of the next generation of training sets for language models},
    author={Li, Jeffrey and Fang, Alex and Smyrnis, Georgios and Ivgi, Maor and Jordan, Matt and others},
    journal={arXiv preprint arXiv:2406.11794},
    year={2024}
}
"""


class CoreCentered(evaluate.Metric):
    """The metric; see `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
        )
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=INPUTS, features=features
        )

    def _compute(self, predictions, references) -> dict[str, float | list[float]]:
        accuracies, chance = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
        if accuracies.size == 0:
            raise ValueError("the mean centered accuracy needs at least one task")
        if np.any(chance >= 1) or np.any(chance < 0):
            raise ValueError("references are chance accuracies: give fractions from 0 to below 1")
        if np.any(accuracies > 1) or np.any(accuracies < 0):
            raise ValueError("predictions are accuracies: give fractions from 0 to 1, not percent")
        centered = (accuracies - chance) / (1 - chance)
        return {"core_centered": float(np.mean(centered)), "centered": centered.tolist()}
