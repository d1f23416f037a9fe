"""Evaluation in bfloat16: when it is chosen, and that scores change by ties only."""

import copy

import pytest
import torch

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.evals import core
from nanochat_hf.evals.bundle import load_bundle
from nanochat_hf.evals.evaluated_model import evaluation_dtype
from nanochat_hf.evals.microworld_bundle import write_bundle
from nanochat_hf.evals.scoring import score_groups

TIE = 0.05  # nats per token; bfloat16 keeps 8 bits, so losses around 5 nats are rounded by about 0.02


def test_bfloat16_is_the_default_on_cuda_only(monkeypatch):
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert evaluation_dtype("auto", cuda) == evaluation_dtype(None, cuda) == "bfloat16"
    assert evaluation_dtype("float32", cuda) == "float32", "the flag decides"
    assert evaluation_dtype("auto", cpu) == "auto" and evaluation_dtype(None, torch.device("mps")) is None
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert evaluation_dtype("auto", cuda) == "auto", "an old card only emulates it"


@pytest.fixture(scope="module")
def trained():
    """A small model that has learnt the microworld's bundle a little, so that its answers are no coin flips."""
    from nanochat_hf.data.microworld import documents
    from nanochat_hf.tokenizer import CorpusEncoder, train

    texts = list(documents("train", limit=400))
    tokenizer = train(texts, 320)
    config = NanochatHFConfig.from_depth(2, vocab_size=320, sequence_length=256, head_dim=32, aspect_ratio=32)
    torch.manual_seed(0)
    model = NanochatHFForCausalLM(config)
    encoder = CorpusEncoder(tokenizer)
    ids = torch.from_numpy(encoder.encode_batch(texts)[0].astype("int64"))
    rows = ids[: len(ids) // 96 * 96].view(-1, 96)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(60):
        batch = rows[torch.arange(step * 16, step * 16 + 16) % len(rows)]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), encoder


def test_core_in_bfloat16_changes_by_ties_only(trained, tmp_path):
    model, encoder = trained
    in_bf16 = copy.deepcopy(model).to(torch.bfloat16)

    def encode(texts):
        ids, offsets = encoder.encode_batch(texts)
        return [ids[start:end].tolist() for start, end in zip(offsets[:-1], offsets[1:], strict=True)]

    changed = clear = 0
    for task in load_bundle(write_bundle(tmp_path, items=40)):
        if task.kind == "language_modeling":
            continue
        groups = core.spans_of_items(encode, task, range(len(task.items)))
        exact = dict(pair for batch in score_groups(model, groups) for pair in batch)
        outcomes = core.evaluate_task(model, encode, task).outcomes
        rounded = core.evaluate_task(in_bf16, encode, task).outcomes
        for index, scores in exact.items():
            best, second = sorted(score.mean_loss for score in scores)[:2]
            clear += second - best > TIE
            if outcomes[index] != rounded[index]:
                changed += 1
                assert second - best < TIE, f"item {index} of {task.label}"
    assert clear > 60, "most of the 120 items must be no ties, or the test says nothing"
    assert changed < 6
