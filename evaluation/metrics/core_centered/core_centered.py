"""Mean centred accuracy as an `evaluate` module: `evaluate.load("evaluation/metrics/core_centered")`."""

import datasets
import evaluate
import numpy as np

DESCRIPTION = """The mean over tasks of (accuracy - chance) / (1 - chance): 0 is guessing, 1 is perfect. CORE is this
mean over the 22 tasks of DataComp-LM (arXiv:2406.11794)."""

INPUTS = """
Args:
    predictions: accuracy of each task, 0 to 1.
    references: chance accuracy of each task, 0 to 1.

Returns:
    core_centered: the mean; centered: one value a task.

Examples:
    >>> metric = evaluate.load("evaluation/metrics/core_centered")
    >>> metric.compute(predictions=[0.625, 0.3], references=[0.25, 0.0])
    {'core_centered': 0.4, 'centered': [0.5, 0.3]}
"""


class CoreCentered(evaluate.Metric):
    def _info(self):
        features = datasets.Features(
            {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
        )
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions, references):
        predictions, references = np.asarray(predictions), np.asarray(references)
        if np.any(references >= 1):
            raise ValueError("a chance accuracy of 1 leaves nothing to measure; give fractions below 1")
        centred = (predictions - references) / (1 - references)
        return {"core_centered": float(np.mean(centred)), "centered": centred.tolist()}
