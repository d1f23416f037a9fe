"""The `evaluate` modules: loaded by path, equal to the library's own numbers, clear about bad input."""

from pathlib import Path

import pytest
import torch
from byte_tokens import encode_bytes

from nanochat_hf.evals import core
from nanochat_hf.evals.bits_per_byte import bits_per_byte

METRICS = Path(__file__).resolve().parents[2] / "evaluation" / "metrics"
evaluate = pytest.importorskip("evaluate")


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))
    return lambda name: evaluate.load(str(METRICS / name), cache_dir=str(tmp_path))


def test_bits_per_byte(load, tiny_model):
    metric = load("bits_per_byte")
    assert metric.compute(predictions=[6.931471805599453], references=[10]) == {"bits_per_byte": 1.0}, "its example"
    found = metric.compute(predictions=[6.931471805599453, 0.0], references=[10, 10])
    assert found == {"bits_per_byte": pytest.approx(0.5, abs=1e-12)}
    texts = ["one text", "and another, longer one 日本"]
    nats = []
    for ids in encode_bytes(texts):
        with torch.no_grad():
            log_probabilities = tiny_model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nats.append(-log_probabilities[range(len(ids) - 1), ids[1:]].sum().item())
    found = metric.compute(predictions=nats, references=[len(text.encode()) for text in texts])
    ours = bits_per_byte(tiny_model, encode_bytes, texts, max_length=500)
    assert found["bits_per_byte"] == pytest.approx(ours["bits_per_byte"])
    with pytest.raises(ValueError, match="at least one byte"):
        metric.compute(predictions=[1.0], references=[0])
    with pytest.raises(ValueError, match="negative"):
        metric.compute(predictions=[1.0, 1.0], references=[-1, 5])


def test_mean_centered_accuracy(load, tiny_model, bundle):
    metric = load("core_centered")
    found = metric.compute(predictions=[0.625, 0.3], references=[0.25, 0.0])
    assert found == {"core_centered": pytest.approx(0.4), "centered": pytest.approx([0.5, 0.3])}, "its example"
    results = [core.evaluate_task(tiny_model, encode_bytes, task) for task in core.load_bundle(bundle)]
    rows = [result.row() for result in results]
    ours = core.summarize(results)
    for name, baseline in (("core", "baseline"), ("core_corrected", "corrected_baseline")):
        accuracies, chance = [row["accuracy"] for row in rows], [row[baseline] for row in rows]
        assert metric.compute(predictions=accuracies, references=chance)["core_centered"] == pytest.approx(ours[name])
    for predictions, references, words in (([0.5], [1.0], "below 1"), ([50.0], [0.25], "not percent")):
        with pytest.raises(ValueError, match=words):
            metric.compute(predictions=predictions, references=references)


@pytest.mark.parametrize("name", ["bits_per_byte", "core_centered"])
def test_empty_input_is_an_error(load, name):
    with pytest.raises(ValueError, match="at least one"):
        load(name).compute(predictions=[], references=[])


@pytest.mark.parametrize("name", ["bits_per_byte", "core_centered"])
def test_modules_carry_their_documentation(load, name):
    metric = load(name)
    assert "arXiv" in metric.citation and metric.description and "Args:" in metric.inputs_description
    assert set(metric.features) == {"predictions", "references"}
