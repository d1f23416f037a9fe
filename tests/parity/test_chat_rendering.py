"""Conversations render to the tokens that upstream makes of them."""

import json

import pytest

from nanochat_hf.tokenizer import CorpusEncoder, render_conversation, train


@pytest.fixture(scope="module")
def tokenizer(goldens):
    return train([(goldens / "chat_rendering.json").read_text(encoding="utf-8")], 400)


def test_rendering_agrees_with_upstream(tokenizer, goldens):
    encoder = CorpusEncoder(tokenizer)
    cases = json.loads((goldens / "chat_rendering.json").read_text(encoding="utf-8"))
    assert cases
    for case in cases:
        ids, mask = render_conversation(tokenizer, case["conversation"]["messages"])
        decoded = tokenizer.decode(ids).replace("<\u200b|", "<|")  # what the protection of typed names inserts
        assert decoded == "".join(piece["text"] for piece in case["rendered"])
        typed = any("<|" in piece["text"] for piece in case["rendered"] if not piece["special"])
        if typed:
            continue
        expected_ids, expected_mask = [], []
        for piece in case["rendered"]:
            if piece["special"]:
                new = [tokenizer.convert_tokens_to_ids(piece["text"])]
            else:
                new = encoder.encode_batch([piece["text"]])[0][1:].tolist()
            expected_ids += new
            expected_mask += [int(piece["trained"])] * len(new)
        assert (ids, mask) == (expected_ids, expected_mask)


def test_typed_control_tokens_are_the_only_difference(tokenizer, goldens):
    cases = json.loads((goldens / "chat_rendering.json").read_text(encoding="utf-8"))
    for case in cases:
        ids, mask = render_conversation(tokenizer, case["conversation"]["messages"])
        tokens = tokenizer.convert_ids_to_tokens(ids)
        specials = [piece for piece in case["rendered"] if piece["special"]]
        found = [
            (token, one) for token, one in zip(tokens, mask, strict=True) if token in tokenizer.all_special_tokens
        ]
        assert found == [(piece["text"], int(piece["trained"])) for piece in specials]
