"""The `evaluate` modules: by path and from the Hub, equal to what the evaluations report, clear about bad input."""

import ast
import functools
import importlib
import re
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from byte_tokens import encode_bytes

from nanochat_hf.evals import core, tasks
from nanochat_hf.evals.bits_per_byte import bits_per_byte
from nanochat_hf.evals.bundle import load_bundle

ROOT = Path(__file__).resolve().parents[2]
METRICS = ROOT / "evaluation" / "metrics"
NAMES = sorted(path.parent.name for path in METRICS.glob("*/README.md"))
evaluate = pytest.importorskip("evaluate")


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))
    return lambda name: evaluate.load(str(METRICS / name), cache_dir=str(tmp_path))


def test_all_metrics_are_there():
    assert NAMES == ["bits_per_byte", "centered_accuracy", "chatcore", "exact_answer", "pass_at_k"]


def test_bits_per_byte(load, tiny_model):
    metric = load("bits_per_byte")
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


def test_mean_centered_accuracy_is_core(load, tiny_model, bundle):
    metric = load("centered_accuracy")
    results = [core.evaluate_task(tiny_model, encode_bytes, task) for task in load_bundle(bundle)]
    rows = [result.row() for result in results]
    ours = core.summarize(results)
    for name, baseline in (("core", "baseline"), ("core_corrected", "corrected_baseline")):
        accuracies, chance = [row["accuracy"] for row in rows], [row[baseline] for row in rows]
        assert metric.compute(predictions=accuracies, references=chance)["centered_accuracy"] == ours[name]
    for predictions, references, words in (([0.5], [1.0], "below 1"), ([50.0], [0.25], "not percent")):
        with pytest.raises(ValueError, match=words):
            metric.compute(predictions=predictions, references=references)


def test_chatcore_and_pass_at_k_are_those_of_the_chat_tasks(load):
    results = [
        tasks.ChatResult("mmlu", "choice", 0.25, [[1.0], [1.0], [0.0], [1.0]]),
        tasks.ChatResult("gsm8k", "generative", 0.0, [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    ]
    ours = tasks.summarize(results)
    items = [(score, result.name) for result in results for score in result.outcomes]
    scores, names = [score for score, _ in items], [name for _, name in items]
    found = load("chatcore").compute(predictions=scores, references=names)
    assert {name: found[name] for name in ("chatcore", "chatcore_low", "chatcore_high")} == {
        name: ours[name] for name in ("chatcore", "chatcore_low", "chatcore_high")
    }
    assert found["accuracy"] == {name: ours[f"accuracy/{name}"] for name in ("mmlu", "gsm8k")}
    own = load("chatcore").compute(predictions=scores, references=names, baselines={"gsm8k": 0.1})
    assert own["chatcore"] == pytest.approx((0.75 + (1 / 6 - 0.1) / 0.9) / 2), "chance is 0 where it is not named"
    found = load("pass_at_k").compute(predictions=[1, 0], references=[3, 3], k=[2, 3])
    assert found == {f"pass@{k}": ours[f"pass@{k}/gsm8k"] for k in (2, 3)}
    with pytest.raises(ValueError, match="pass@4 needs at least 4 samples"):
        load("pass_at_k").compute(predictions=[1], references=[3], k=[4])
    with pytest.raises(ValueError, match="more correct samples"):
        load("pass_at_k").compute(predictions=[4], references=[3])


def test_exact_answers_have_the_interval_of_the_tables(load):
    row = tasks.ChatResult("exam", "choice", 0.25, [[1.0], [0.0], [1.0]]).row()
    found = load("exact_answer").compute(predictions=["A", "B ", "C"], references=["A", "C", "\nC"])
    assert found == {name: row[name] for name in ("accuracy", "accuracy_low", "accuracy_high")}


@pytest.mark.parametrize("name", NAMES)
def test_empty_input_is_an_error(load, name):
    with pytest.raises(ValueError, match="at least one"):
        load(name).compute(predictions=[], references=[])


@pytest.mark.parametrize("name", NAMES)
def test_cards_and_docstrings_tell_the_truth(load, name):
    """Citation, features and the examples of card and docstring, which are run."""
    metric = load(name)
    assert "@" in metric.citation and metric.description and set(metric.features) == {"predictions", "references"}
    assert all(part in metric.inputs_description for part in ("Args:", "Returns:", "Raises:", "Examples:"))
    card = (METRICS / name / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["title"] and front["description"] and {"evaluate", "metric"} <= set(front["tags"])
    assert (METRICS / name / front["app_file"]).is_file() and "## Citation" in card and "empty input" in card
    call, result = re.search(r"metric\.compute\((.*)\)\n# (.*)\n", card).groups()
    assert eval(f"metric.compute({call})", {"metric": metric}) == ast.literal_eval(result)
    example = importlib.import_module("doctest")
    runner = example.DocTestRunner(verbose=False)
    loaded = type("Evaluate", (), {"load": staticmethod(lambda path: metric)})
    for test in [example.DocTestParser().get_doctest(metric.inputs_description, {"evaluate": loaded}, name, None, 0)]:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0 and runner.tries > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_uploaded_to_the_hub_loads_from_there(name, tmp_path, monkeypatch):
    """A server in the place of the Hub hands out the folder's files; evaluate asks it as it asks the Hub."""

    class Hub(SimpleHTTPRequestHandler):
        def translate_path(self, path):
            match = re.fullmatch(rf"/spaces/someone/{name}/resolve/main/(.+)", path)
            return str(METRICS / name / match[1]) if match else str(tmp_path / "absent")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/spaces/{{path}}/resolve/{{revision}}/{{name}}"
    monkeypatch.setattr("evaluate.config.HUB_EVALUATE_URL", address)
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", False)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    try:
        options = evaluate.utils.file_utils.DownloadConfig(cache_dir=tmp_path / "downloads", use_etag=False)
        metric = evaluate.load(
            f"someone/{name}", revision="main", cache_dir=str(tmp_path / "cache"), download_config=options
        )
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(ValueError, match="at least one"):
        metric.compute(predictions=[], references=[])


def test_there_is_one_formula_of_each_metric():
    """Every module's `formulas.py` is the one file, and no other file has a logarithm of two or an interval."""
    for name in NAMES:
        assert (METRICS / name / "formulas.py").resolve() == ROOT / "nanochat_hf/evals/metrics/formulas.py"
    formula = re.compile(r"log\(2(\.0)?\)|math\.comb\(|\.multinomial\(|1 - baseline|1\.0 - baseline|1\.96")
    for folder in ("nanochat_hf", "training", "evaluation"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.resolve() != ROOT / "nanochat_hf/evals/metrics/formulas.py":
                assert not formula.search(path.read_text(encoding="utf-8")), path


def test_the_evaluations_start_without_evaluate():
    code = "import sys, nanochat_hf.evals.runner; assert not {'evaluate', 'datasets'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
