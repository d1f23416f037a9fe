"""A stand-in for a tokenizer: one token per byte."""

BOS = 256


def encode_bytes(texts):
    """Texts → rows that begin with BOS, with one token per byte."""
    return [[BOS, *text.encode("utf-8")] for text in texts]
