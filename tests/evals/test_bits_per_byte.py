import copy
import json
import math

import numpy as np
import pytest
import torch
from byte_tokens import BOS, encode_bytes

from nanochat_hf.data.loader import ValidationDocuments
from nanochat_hf.evals.bits_per_byte import bits_per_byte, packed_bits_per_byte
from nanochat_hf.settings import UserError


def nats_of(model, ids):
    """Loss of each token given all before it, one forward pass for the whole sequence."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    return -logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]


def test_documents_equal_the_definition(tiny_model):
    texts = ["short", "a somewhat longer document, with ünïcödé and 日本語 🙂", "x", ""]
    seen = []
    found = bits_per_byte(
        tiny_model, encode_bytes, texts, max_length=500, max_tokens=70, progress=lambda n: seen.append(n)
    )
    nats = sum(nats_of(tiny_model, ids).sum().item() for ids in encode_bytes(texts[:3]))
    size = sum(len(text.encode()) for text in texts)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size)
    assert found["bytes"] == size and found["documents"] == 3 and sum(seen) == 3
    assert found["bytes_per_token"] == 1.0


def test_long_documents_count_every_token_once(tiny_model):
    text = "abcdefghij" * 5
    (ids,) = encode_bytes([text])
    finished = []
    found = bits_per_byte(
        tiny_model, encode_bytes, [text, "short"], max_length=20, max_tokens=21, progress=finished.append
    )
    assert sum(finished) == 2 and len(finished) > 2, "a document counts once, when its last window is scored"
    found = bits_per_byte(tiny_model, encode_bytes, [text], max_length=20)
    windows = [ids[0:21], ids[20:41], ids[40:]]
    nats = sum(nats_of(tiny_model, window).sum().item() for window in windows)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / 50)


def test_packed_rows_skip_control_tokens_and_masked_targets(tiny_model):
    row = [BOS, 65, 66, BOS, 67, 68, 69]
    lengths = torch.tensor([1] * 256 + [0] * 4)
    ids = torch.tensor([row])
    losses = nats_of(tiny_model, row)
    counted = [0, 1, 3, 4, 5]  # not the second BOS
    expected = losses[counted].sum().item() / math.log(2) / 5
    assert packed_bits_per_byte(tiny_model, [{"input_ids": ids}], lengths) == pytest.approx(expected)

    masked = torch.tensor([[BOS, 65, -100, BOS, 67, 68, 69]])
    expected = losses[[0, 3, 4, 5]].sum().item() / math.log(2) / 4
    assert packed_bits_per_byte(tiny_model, [{"input_ids": ids, "labels": masked}], lengths) == pytest.approx(expected)

    shifted = {"input_ids": ids[:, :-1], "shift_labels": ids[:, 1:], "labels": ids[:, :-1]}
    expected = losses[counted].sum().item() / math.log(2) / 5
    assert packed_bits_per_byte(tiny_model, [shifted], lengths) == pytest.approx(expected)


def test_tokens_weigh_by_their_bytes(tiny_model):
    row = [BOS, 65, 66, 67]
    lengths = torch.zeros(260, dtype=torch.long)
    lengths[65], lengths[66] = 3, 7
    expected = nats_of(tiny_model, row)[:2].sum().item() / math.log(2) / 10
    assert packed_bits_per_byte(tiny_model, [{"input_ids": torch.tensor([row])}], lengths) == pytest.approx(expected)


@pytest.mark.parametrize("rows_at_once", [1, 2])
def test_rows_are_split_where_their_logits_are_many(tiny_model, monkeypatch, rows_at_once):
    lengths = torch.tensor([1] * 256 + [0] * 4)
    batch = {"input_ids": torch.randint(0, 256, (5, 12), generator=torch.Generator().manual_seed(1))}
    whole = packed_bits_per_byte(tiny_model, [batch], lengths)
    monkeypatch.setattr("nanochat_hf.evals.bits_per_byte.MAX_LOGITS_PER_FORWARD", rows_at_once * 12 * 260)
    seen = []
    hook = tiny_model.register_forward_hook(lambda *arguments: seen.append(len(arguments[-1].logits)))
    assert packed_bits_per_byte(tiny_model, [batch], lengths) == pytest.approx(whole)
    hook.remove()
    assert max(seen) == rows_at_once and sum(seen) == 5


def test_nothing_to_score_is_infinite(tiny_model):
    batch = {"input_ids": torch.tensor([[BOS, BOS]])}
    assert packed_bits_per_byte(tiny_model, [batch], torch.tensor([1] * 256 + [0] * 4)) == math.inf


def test_a_model_that_computes_no_numbers_is_refused(tiny_model):
    broken = copy.deepcopy(tiny_model)
    broken.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="not numbers"):
        bits_per_byte(broken, encode_bytes, ["some text"], max_length=64)


def test_steps_limit_an_endless_loader(tiny_model):
    def endless():
        while True:
            yield {"input_ids": torch.tensor([[BOS, 65, 66]])}

    lengths = torch.tensor([1] * 256 + [0] * 4)
    once = packed_bits_per_byte(tiny_model, endless(), lengths, steps=1)
    assert packed_bits_per_byte(tiny_model, endless(), lengths, steps=3) == pytest.approx(once)


class ByteEncoder:
    """The encoder's interface: a token per byte, after BOS."""

    def encode_batch(self, texts):
        documents = [[BOS, *text.encode()] for text in texts]
        return np.array(sum(documents, [])), np.cumsum([0, *map(len, documents)])


def test_whole_documents_in_batches_of_one_shape_give_the_same_number(tiny_model, tmp_path):
    """What training prints is what the evaluation of a finished model prints, for short and long documents."""
    texts = ["a", "bread and butter", "é" * 20, "x" * 40, "the last"]
    (tmp_path / "train.jsonl").write_text('{"text": "other"}\n')
    (tmp_path / "valid.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    lengths = torch.tensor([1] * 256 + [0] * 4)

    def encode(texts):
        return [[BOS, *text.encode()] for text in texts]

    for count in (5, 3):
        expected = bits_per_byte(tiny_model, encode, texts[:count], max_length=16)["bits_per_byte"]
        options = {"batch_size": 3, "sequence_length": 16, "documents": count}
        batches = ValidationDocuments(str(tmp_path), ByteEncoder(), **options)
        assert {batch["input_ids"].shape for batch in batches} == {(3, 16)}
        assert packed_bits_per_byte(tiny_model, batches, lengths) == pytest.approx(expected)
        parts = [ValidationDocuments(str(tmp_path), ByteEncoder(), rank=r, world_size=2, **options) for r in (0, 1)]
        assert len(parts[0]) == len(parts[1])
        whole = [batch for part in parts for batch in part]
        assert packed_bits_per_byte(tiny_model, whole, lengths) == pytest.approx(expected)
