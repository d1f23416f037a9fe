"""Bits per byte as an `evaluate` module: `evaluate.load("evaluation/metrics/bits_per_byte")`."""

import datasets
import evaluate
import numpy as np

DESCRIPTION = """The sum of -log2 p over all tokens divided by the number of UTF-8 bytes they stand for: a language
model's loss in units that do not depend on its tokenizer. Lower is better."""

INPUTS = """
Args:
    predictions: nats (natural-log loss), summed over the tokens of a document or batch.
    references: number of UTF-8 bytes of the same tokens; control tokens count neither here nor there.

Returns:
    bits_per_byte: sum of nats / (ln 2 × sum of bytes).

Examples:
    >>> metric = evaluate.load("evaluation/metrics/bits_per_byte")
    >>> metric.compute(predictions=[6.931471805599453], references=[10])
    {'bits_per_byte': 1.0}
"""


class BitsPerByte(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions, references):
        size = np.sum(references)
        if size <= 0:
            raise ValueError("bits per byte needs at least one byte in references")
        return {"bits_per_byte": float(np.sum(predictions) / (np.log(2.0) * size))}
