"""The start from bigrams: counts, smoothing, gradients, and the run that begins with it."""

import json
import re
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf import tokenizer as tokenizers
from nanochat_hf.settings import load_run
from nanochat_hf.stages.pretrain import main
from nanochat_hf.trainers import bigrams, pretraining_setup
from nanochat_hf.trainers.pretraining_setup import bigram_start
from tests.data.toy import START, ByteEncoder, make_documents, write_jsonl


class Encoder(ByteEncoder):
    def __len__(self):
        return 257


@pytest.fixture
def folder(tmp_path):
    for name in "abc":
        write_jsonl(tmp_path / f"{name}.jsonl", make_documents(40, name))
    return tmp_path


def new_model(vocab_size=64, depth=2):
    config = NanochatHFConfig.from_depth(
        depth, vocab_size=vocab_size, aspect_ratio=32, head_dim=32, sequence_length=32, window_pattern="L"
    )
    return NanochatHFForCausalLM(config)


def random_pairs(vocab=64, tokens=20_000, seed=0):
    """Counts of a Markov chain whose tokens are followed by few others, and the chain."""
    rng = np.random.default_rng(seed)
    chances = rng.dirichlet(np.full(vocab, 0.1), size=vocab)
    chain = [0]
    for _ in range(tokens):
        chain.append(int(rng.choice(vocab, p=chances[chain[-1]])))
    found = Counter(zip(chain, chain[1:], strict=False))
    keys = sorted(found)
    first, second = torch.tensor(keys).T.contiguous()
    return bigrams.PairCounts(len(chain), first, second, torch.tensor([float(found[k]) for k in keys])), chain


def test_pairs_are_counted_as_a_plain_loop_counts_them(folder, monkeypatch):
    monkeypatch.setattr(bigrams, "TOKENS_AT_ONCE", 300)
    monkeypatch.setattr(bigrams, "DOCUMENTS_AT_ONCE", 7)
    pairs = bigrams.count_pairs(f"{folder}/*.jsonl", Encoder())
    documents = [[START, *text.encode()] for name in "ab" for text in make_documents(40, name)]  # the last validates
    expected = Counter(pair for ids in documents for pair in zip(ids, ids[1:], strict=False))
    found = {(int(a), int(b)): int(n) for a, b, n in zip(pairs.first, pairs.second, pairs.count, strict=True)}
    within = {pair: n for pair, n in found.items() if pair[1] != START}
    assert within == dict(expected) and pairs.tokens == sum(map(len, documents)) > 3000
    assert sum(found.values()) - sum(within.values()) > len(documents) / 2, "documents follow each other"
    assert sorted(found) == list(found), "rows of the table are read as ranges"
    assert bigrams.count_pairs(f"{folder}/*.jsonl", Encoder(), 100).tokens < 1000


def test_the_smoothed_table_is_a_distribution_that_keeps_the_counts():
    pairs, _ = random_pairs()
    table = bigrams.SmoothedTable(pairs, 64, torch.device("cpu"))
    joint = torch.cat([table.joint(slice(0, 40)), table.joint(slice(40, 64))])
    assert joint.min() >= 0 and abs(joint.sum() - 1) < 1e-5
    by_row = torch.zeros(64).index_add_(0, pairs.first, pairs.count) / pairs.count.sum()
    torch.testing.assert_close(joint.sum(1), by_row)
    assert joint[pairs.first[5], pairs.second[5]] == pytest.approx(float(pairs.count[5]) / 20_000, abs=1e-4)


@pytest.mark.parametrize("cap", [15.0, None])
def test_gradients_are_autograds(cap, monkeypatch):
    monkeypatch.setattr(bigrams, "CACHED_LOGITS", 64 * 10)  # some rows at a time, the last part shorter
    pairs, _ = random_pairs()
    table = bigrams.SmoothedTable(pairs, 64, torch.device("cpu"))
    hidden, weight = (3 * torch.randn(64, 32)).requires_grad_(), torch.randn(64, 32).requires_grad_()
    logits = hidden @ weight.T
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    loss = -(table.joint(slice(0, 64)) * logits.log_softmax(1)).sum()
    expected = torch.autograd.grad(loss, (hidden, weight))
    found = bigrams.loss_and_gradients(hidden.detach(), weight.detach(), table.joint, cap)
    assert found[0] == pytest.approx(loss.item(), rel=1e-5)
    for own, other in zip(found[1:], expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


def test_a_fitted_new_model_predicts_the_text_as_the_table_does():
    torch.manual_seed(0)
    model = new_model()
    pairs, chain = random_pairs()
    loss = bigrams.fit_bigrams(model, pairs, steps=32)
    rows = torch.tensor(chain[:3200]).view(100, 32)
    with torch.no_grad():
        seen = model(input_ids=rows, labels=rows).loss.item()
    table = bigrams.SmoothedTable(pairs, 64, torch.device("cpu")).joint(slice(0, 64))
    entropy = -(table * (table / table.sum(1, keepdim=True)).log()).sum().item()
    assert entropy < loss < entropy + 0.15, "32 steps come close to the table itself"
    assert seen == pytest.approx(loss, abs=0.15), "the new model is this table: its layers add nothing yet"


def test_a_run_too_short_for_the_fit_has_none():
    step = 6 * 8192**2 * 256
    assert bigrams.fit_steps(8192, 256, 1e15) == bigrams.STEPS
    assert bigrams.fit_steps(8192, 256, 2 * 20.5 * step) == 20
    assert bigrams.fit_steps(8192, 256, 2 * 15.5 * step) == 0


SHAPE = ["--depth", "2", "--aspect_ratio", "32", "--head_dim", "32", "--sequence_length", "64"]


@pytest.fixture
def run(folder, tmp_path):
    """Trains 12 steps and returns what `run.json` says; further options are appended."""
    tokenizers.train(make_documents(200), 300).save_pretrained(tmp_path / "tokenizer")
    options = ["--data", f"{folder}/*.jsonl", "--tokenizer", str(tmp_path / "tokenizer"), "--total_batch_size", "512"]
    options += ["--num_iterations", "12", "--eval_every", "12", "--eval_documents", "5", "--log_every", "1"]

    def train(name, *more):
        main([*SHAPE, *options, "--output_dir", str(tmp_path / name), *more])
        return load_run(tmp_path / name)

    return train


def losses(run):
    return [row["loss"] for row in run["history"] if "loss" in row]


def test_a_run_starts_from_bigrams(run, capsys):
    whole = run("fitted", "--preset", "small", "--bigram_tokens", "3000")
    fitted, printed = losses(whole), capsys.readouterr().out
    assert "start: embedding and head are fitted to the bigrams of 3,000 tokens of the text in 40 steps" in printed
    assert re.search(r"^bigrams of [3-5],\d{3} tokens: \d\.\d{3} nats; ", printed, re.MULTILINE)
    assert whole["bigram_start"] == {"tokens": 3000, "steps": 40}
    plain = losses(run("plain", "--preset", "small"))
    printed = capsys.readouterr().out
    assert "start: random weights, as bigrams need as many tokens of text as embedding and head have" in printed
    modern = losses(run("modern"))
    assert "start:" not in capsys.readouterr().out
    assert fitted[0] < plain[0] - 0.5 and plain[0] == modern[0]


def test_a_dry_run_says_how_the_run_would_start(run, capsys):
    assert not run("dry", "--bigram_tokens", "3000", "--dry_run")
    assert "start: embedding and head are fitted to the bigrams of 3,000 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("preset", "asked", "text_tokens", "run_tokens", "expected"),
    [
        ("small", None, 10**7, 2**22, (10**7, bigrams.STEPS)),
        ("small", None, 10**8, 2**22, (bigrams.TOKENS, bigrams.STEPS)),
        ("small", None, 2 * 8192 * 256 - 1, 2**22, (0, 0)),
        ("small", None, None, 2**22, (bigrams.TOKENS, bigrams.STEPS)),
        ("small", None, None, 2**22 + 1, (0, 0)),
        ("small", 0, 10**7, 2**22, (0, 0)),
        ("small", 5000, 10**5, 2**22, (5000, bigrams.STEPS)),
        ("small", 5000, 1000, 2**22, (1000, bigrams.STEPS)),
        ("modern", None, 10**9, 2**22, (0, 0)),
        ("classic", 5000, 10**9, 10**10, (5000, bigrams.STEPS)),
    ],
)
def test_only_short_runs_of_the_preset_small_have_this_start_and_only_with_enough_text(
    preset, asked, text_tokens, run_tokens, expected, tmp_path
):
    config = SimpleNamespace(bigram_tokens=asked, induction_heads=False, output_dir=tmp_path)
    dial = SimpleNamespace(preset=preset, hidden_size=256, total_flops=1e15, total_tokens=run_tokens)
    start = bigram_start(config, range(8192), dial, text_tokens, before=None)
    assert (start.tokens, start.steps) == expected
    assert bool(start.reason) == (preset == "small" and asked is None and not start.steps)


def test_embedding_and_head_train_at_low_rates_after_this_start(run, monkeypatch):
    made = []
    build = pretraining_setup.build_trainer
    monkeypatch.setattr(pretraining_setup, "build_trainer", lambda *a, **k: made.append(build(*a, **k)) or made[-1])
    run("fitted", "--bigram_tokens", "3000", "--embedding_lr", "0.02")
    run("plain")
    rates = []
    for trainer in made:
        groups = {group["name"]: group for group in trainer.optimizer.param_groups}
        names = ("head", "embedding", "value_embedding", "backout")
        rates.append([groups[name]["initial_lr"] for name in names])
    factors = [one / other for one, other in zip(*rates, strict=True)]
    assert factors == pytest.approx([0.0005 / 0.008, 0.02 / 0.3, 1, 0.1])


def test_a_resumed_run_with_this_start_is_the_uninterrupted_one(run, tmp_path, capsys):
    run("whole", "--bigram_tokens", "3000", "--save_every", "6", "--save_total_limit", "9")
    for name in ("resumed", "older"):
        shutil.copytree(tmp_path / "whole" / "checkpoint-6", tmp_path / name / "checkpoint-6")
    record = json.loads((tmp_path / "whole" / "started.json").read_text())
    (tmp_path / "resumed" / "started.json").write_text(json.dumps(record))
    for name in ("bigram_start", "bigram_tokens"):
        del record[name]
    (tmp_path / "older" / "started.json").write_text(json.dumps(record))
    capsys.readouterr()
    run("resumed", "--bigram_tokens", "3000", "--save_every", "6")
    assert "bigrams" not in capsys.readouterr().out, "the checkpoint's weights count"
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    older = run("older", "--bigram_tokens", "3000", "--save_every", "6")
    assert older["bigram_start"]["steps"] == 0, "a run of a version without this start keeps its rates"


def test_a_start_that_does_not_fit_into_the_run_is_said(run, capsys, monkeypatch):
    monkeypatch.setattr(bigrams, "SHARE_OF_RUN", 1e-3)
    run("short", "--preset", "small", "--bigram_tokens", "1000")
    printed = capsys.readouterr().out
    assert "start: random weights, as a start from bigrams would be more than half of so short a run" in printed
