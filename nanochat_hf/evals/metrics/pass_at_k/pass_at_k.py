"""pass@k as an `evaluate` module: `evaluate.load("evaluation/metrics/pass_at_k")`."""

import datasets
import evaluate

from .formulas import mean_pass_at_k

DESCRIPTION = """The probability that at least one of k samples solves a problem, estimated without bias from n >= k
samples, and averaged over problems. The samples were judged before: nothing is run here."""

INPUTS = """
Args:
    predictions: number of correct samples of each problem.
    references: number of samples of each problem.
    k: the values of k; default [1].

Returns:
    pass@k for each k.

Raises:
    ValueError: there is no problem, a problem has fewer samples than k, or more correct samples than samples.

Examples:
    >>> metric = evaluate.load("evaluation/metrics/pass_at_k")
    >>> metric.compute(predictions=[1, 0], references=[2, 2], k=[1, 2])
    {'pass@1': 0.25, 'pass@2': 0.5}
"""

CITATION = """
@article{chen2021evaluating,
    title={Evaluating Large Language Models Trained on Code},
    author={Chen, Mark and Tworek, Jerry and Jun, Heewoo and Yuan, Qiming and others},
    journal={arXiv preprint arXiv:2107.03374},
    year={2021}
}
"""


class PassAtK(evaluate.Metric):
    """The metric; see `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=INPUTS, features=features
        )

    def _compute(self, predictions, references, k=(1,)) -> dict[str, float]:
        if not len(predictions):
            raise ValueError("pass@k needs at least one problem")
        if any(not 0 <= correct <= samples for correct, samples in zip(predictions, references, strict=True)):
            raise ValueError("a problem cannot have more correct samples than samples, nor fewer than none")
        return {f"pass@{one}": mean_pass_at_k(references, predictions, one) for one in k}
