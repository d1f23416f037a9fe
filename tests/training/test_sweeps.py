"""The sweeps over depths and budgets: the commands on runs of seconds, and the fits on known curves."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanochat_hf import settings
from nanochat_hf.scaling import sweep
from nanochat_hf.stages import scaling_laws as laws
from nanochat_hf.stages.pretrain import PretrainConfig

TRAINING = Path(__file__).parents[2] / "training"


def known_world(budget, params):
    """Loss with its lowest point at params = 0.1 · √FLOPs, tokens = FLOPs / (6 · params)."""
    best = 0.1 * math.sqrt(budget)
    loss = 3 - 0.1 * math.log10(budget) + 0.05 * math.log(params / best) ** 2
    return {"budget": budget, "params": params, "tokens": budget / (6 * params), "flops": budget, "loss": loss}


def test_fits_find_what_was_put_in():
    bests = []
    for budget in (1e12, 1e13, 1e14):
        rows = [known_world(budget, 0.1 * math.sqrt(budget) * factor) for factor in (0.4, 0.9, 1.7, 4.0)]
        bests.append(laws.best_of_budget(rows))
        assert bests[-1]["params"] == pytest.approx(0.1 * math.sqrt(budget), rel=1e-6)
        assert bests[-1]["score"] == pytest.approx(3 - 0.1 * math.log10(budget), rel=1e-6)
    assert laws.power_law(bests, "params")[0] == pytest.approx(0.5)
    assert laws.power_law(bests, "tokens")[0] == pytest.approx(0.5)
    assert "params ∝ FLOPs^0.500" in laws.describe(bests, [])


def test_no_lowest_point_is_said_and_not_made_up():
    too_large = [known_world(1e12, 0.1 * 1e6 * factor) for factor in (2, 4, 8)]
    assert laws.best_of_budget(too_large) is None
    assert laws.best_of_budget(too_large[:2]) is None
    assert laws.power_law([], "params") is None
    assert "add smaller or larger ones" in laws.describe([], [1e12])


def finished(folder, depth, loss):
    dial = {"depth": depth, "scaling_params": 1000 * depth**2}
    metrics = {"loss": loss, "tokens": 10_000, "flops": 1e9 * depth}
    settings.save_run(folder, "pretrain", {}, metrics=metrics, dial=dial)


def test_a_tiny_sweep_trains_what_is_missing_and_draws(tmp_path):
    """One depth is finished already; the other is trained by the real script."""
    from nanochat_hf import tokenizer
    from nanochat_hf.data.sources import open_documents

    tokenizer.train(open_documents("microworld").next_batch(100), 320).save_pretrained(tmp_path / "tokenizer")
    finished(tmp_path / "runs" / "d2", 2, 5.0)
    command = [sys.executable, str(TRAINING / "miniseries.py"), "--depths", "1", "2", "--run_dir"]
    command += [str(tmp_path / "runs"), "--tokenizer", str(tmp_path / "tokenizer"), "--", "--data", "microworld"]
    command += ["--sequence_length", "32", "--num_iterations", "2", "--total_batch_size", "128", "--eval_every", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "runs" / "miniseries.json").read_text())
    assert [one["depth"] for one in rows] == [1, 2] and rows[0]["tokens"] == 256 and rows[1]["loss"] == 5.0
    assert (tmp_path / "runs" / "miniseries.png").read_bytes().startswith(b"\x89PNG")
    assert "| 2 | 4,000 | 10,000 | 2e+09 | 5.0000 |" in done.stdout


def test_all_models_of_a_sweep_have_one_preset(tmp_path, monkeypatch):
    commands = []

    def run(command, title):
        commands.append(command)
        finished(Path(command[command.index("--output_dir") + 1]), 1, 5.0)
        return 0

    monkeypatch.setattr(settings, "run_command", run)
    options = SimpleNamespace(tokenizer="x", accelerate_config=None)
    sweep.train_one_model(tmp_path / "a", options, ["--total_tokens", "1000"])
    sweep.train_one_model(tmp_path / "b", options, ["--preset", "small"])
    chosen = [settings.parse_stage("pretrain", PretrainConfig, command[3:]) for command in commands]
    assert [config.preset for config in chosen] == ["modern", "small"]


def test_scaling_laws_over_finished_runs(tmp_path, monkeypatch, capsys):
    for budget in (1e12, 1e13):
        for depth, bend in ((1, 0.3), (2, 0.0), (4, 0.3)):
            finished(tmp_path / f"{budget:.3g}-d{depth}", depth, 4.0 + bend)
    options = ["--budgets", "1e12", "1e13", "--depths", "1", "2", "4", "--run_dir", str(tmp_path), "--tokenizer", "x"]
    monkeypatch.setattr(sys, "argv", ["scaling_laws.py", *options])
    laws.main()
    assert "best params ∝ FLOPs^" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "scaling_laws.json").read_text())["bests"]) == 2
    assert (tmp_path / "scaling_laws.png").exists()
