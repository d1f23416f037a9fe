"""Bits per byte as an `evaluate` module: `evaluate.load("evaluation/metrics/bits_per_byte")`."""

import datasets
import evaluate

from .formulas import bits_per_byte

DESCRIPTION = """The sum of -log2 p over all tokens, divided by the number of UTF-8 bytes of these tokens. It is a
language model's loss in units that do not depend on its tokenizer. Lower is better."""

INPUTS = """
Args:
    predictions: loss in nats (natural logarithm), summed over the tokens of a document or batch.
    references: number of UTF-8 bytes of the same tokens. Control tokens count in neither.

Returns:
    bits_per_byte: sum of nats / (ln 2 × sum of bytes).

Raises:
    ValueError: the references hold no byte, or a negative number.

Examples:
    >>> metric = evaluate.load("evaluation/metrics/bits_per_byte")
    >>> metric.compute(predictions=[6.931471805599453], references=[10])
    {'bits_per_byte': 1.0}
"""

CITATION = """
@article{gao2020pile,
    title={The Pile: An 800GB Dataset of Diverse Text for Language Modeling},
    author={Gao, Leo and Biderman, Stella and Black, Sid and Golding, Laurence and Hoppe, Travis and others},
    journal={arXiv preprint arXiv:2101.00027},
    year={2020}
}
"""


class BitsPerByte(evaluate.Metric):
    """The metric; see `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=INPUTS, features=features
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        if any(size < 0 for size in references):
            raise ValueError("references are numbers of bytes, but one of them is negative")
        if not sum(references):
            raise ValueError("bits per byte needs at least one byte in references")
        return {"bits_per_byte": bits_per_byte(sum(predictions), sum(references))}
