"""The sweeps over depths and budgets: the commands on runs of seconds, and the fits on known curves."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanochat_hf import settings
from nanochat_hf.data import fingerprints
from nanochat_hf.settings import UserError
from nanochat_hf.stages import miniseries, sweep
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


def finished(folder, depth, loss, *arguments, **facts):
    """A finished model of a sweep with `--depth` and further arguments of pretraining."""
    dial = {"depth": depth, "scaling_params": 1000 * depth**2}
    metrics = {"loss": loss, "tokens": 10_000, "flops": 1e9 * depth}
    settings.save_run(folder, "pretrain", {}, metrics=metrics, dial=dial, **facts)
    run = settings.load_run(folder)
    run["environment"]["command"] = ["pretrain.py", "--depth", str(depth), "--preset", "modern", *arguments]
    settings.write_json(folder / settings.RUN_FILE, run)


def test_a_tiny_sweep_trains_what_is_missing_and_draws(tmp_path):
    """One depth is finished already; the other is trained by the real script."""
    from nanochat_hf import tokenizer
    from nanochat_hf.data.sources import open_documents

    tokenizer.train(open_documents("microworld").next_batch(100), 320).save_pretrained(tmp_path / "tokenizer")
    settings_of_all = ["--data", "microworld", "--sequence_length", "32", "--num_iterations", "2"]
    settings_of_all += ["--total_batch_size", "128", "--eval_every", "-1"]
    finished(tmp_path / "runs" / "d2", 2, 5.0, *settings_of_all)
    command = [sys.executable, str(TRAINING / "miniseries.py"), "--depths", "1", "2", "--run_dir"]
    command += [str(tmp_path / "runs"), "--tokenizer", str(tmp_path / "tokenizer"), "--", *settings_of_all]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "runs" / "miniseries.json").read_text())
    assert [one["depth"] for one in rows] == [1, 2] and rows[0]["tokens"] == 256 and rows[1]["loss"] == 5.0
    assert (tmp_path / "runs" / "miniseries.png").read_bytes().startswith(b"\x89PNG")
    assert "| 2 | 4,000 | 10,000 | 2e+09 | 5.0000 |" in done.stdout


def commands_of(monkeypatch):
    """The commands of pretraining, which are not run; each leaves a finished model."""
    commands = []

    def run(command, title):
        commands.append(command[3:])
        finished(Path(command[command.index("--output_dir") + 1]), 1, 5.0)
        return 0

    monkeypatch.setattr(settings, "run_command", run)
    return commands


def test_all_models_of_a_sweep_have_one_preset(tmp_path, monkeypatch):
    commands = commands_of(monkeypatch)
    options = SimpleNamespace(tokenizer="x", accelerate_config=None, run_dir=tmp_path)
    sweep.train_models({"a": ["--total_tokens", "1000"], "b": ["--preset", "small"]}, options)
    chosen = [settings.parse_stage("pretrain", PretrainConfig, words) for words in commands]
    assert [config.preset for config in chosen] == ["modern", "small"]


@pytest.mark.parametrize(
    ("before", "now", "says"),
    [
        (
            ["--num_iterations", "6"],
            ["--num_iterations", "3"],
            r"d2 was trained with another num_iterations \(6, not 3",
        ),
        (["--num_iterations", "6"], [], r"another num_iterations \(6, not -1\); delete that folder, or give another"),
        ([], ["--eval_tokens", "256", "--lr_scale", "2"], "another eval_tokens, lr_scale;|another lr_scale, eval_tok"),
        (["--config", "gone.yaml"], [], "the settings of .*d2 cannot be read again .cannot read the recipe gone.yaml"),
        ([], ["--nonsense", "1"], "--nonsense is not an option"),
    ],
)
def test_a_finished_model_of_other_settings_is_refused_before_any_is_trained(tmp_path, monkeypatch, before, now, says):
    commands = commands_of(monkeypatch)
    finished(tmp_path / "d2", 2, 5.0, *before)
    with pytest.raises(UserError, match=says):
        miniseries.main(["--depths", "1", "2", "--run_dir", str(tmp_path), "--tokenizer", "x", "--", *now])
    assert not commands


def test_a_finished_model_of_other_text_or_another_tokenizer_is_refused(tmp_path):
    for name, text in (("texts", "as it was"), ("moved", "as it was"), ("others", "not as it was")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(text)
    text = ["--data", str(tmp_path / "texts")]
    finished(tmp_path / "runs" / "d2", 2, 5.0, *text, fingerprint=fingerprints.of_text(text[1]))

    def again(data):
        command = ["--depths", "2", "--run_dir", str(tmp_path / "runs"), "--tokenizer", str(tmp_path / "tokenizer")]
        miniseries.main([*command, "--", "--data", str(tmp_path / data), "--compile", "true", "--save_every", "5"])

    again("moved")
    with pytest.raises(UserError, match="the data in .*others has changed .* since .*d2 was trained"):
        again("others")
    for folder, content in (("runs/d2", "{}"), ("tokenizer", "{ }")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="d2 was trained with another tokenizer"):
        again("texts")


def test_a_budget_decides_the_length_of_a_run(tmp_path, monkeypatch):
    commands = commands_of(monkeypatch)
    (tmp_path / "own.yaml").write_text("pretrain:\n  num_iterations: 3\n  total_tokens: 4\n")
    options = ["--budgets", "1e12", "--depths", "1", "--run_dir", str(tmp_path), "--tokenizer", "x", "--"]
    laws.main([*options, "--config", str(tmp_path / "own.yaml")])
    config = settings.parse_stage("pretrain", PretrainConfig, commands[0])
    assert (config.num_iterations, config.total_tokens, config.target_flops) == (-1, -1, 1e12)
    with pytest.raises(UserError, match="--num_iterations after -- is set by the sweep itself; remove it there"):
        laws.main([*options, "--num_iterations", "3"])


@pytest.mark.parametrize("word", ["--help", "--help-all", "-h", "--dry_run"])
def test_what_trains_nothing_is_refused(tmp_path, word):
    with pytest.raises(UserError, match=f"{word} after -- trains nothing; give it to nanochat-hf pretrain"):
        miniseries.main(["--depths", "1", "--run_dir", str(tmp_path), "--tokenizer", "x", "--", word])


def test_scaling_laws_over_finished_runs(tmp_path, monkeypatch, capsys):
    for budget in (1e12, 1e13):
        for depth, bend in ((1, 0.3), (2, 0.0), (4, 0.3)):
            finished(tmp_path / f"{budget:.3g}-d{depth}", depth, 4.0 + bend, "--target_flops", str(budget))
    options = ["--budgets", "1e12", "1e13", "--depths", "1", "2", "4", "--run_dir", str(tmp_path), "--tokenizer", "x"]
    monkeypatch.setattr(sys, "argv", ["scaling_laws.py", *options])
    laws.main()
    assert "best params ∝ FLOPs^" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "scaling_laws.json").read_text())["bests"]) == 2
    assert (tmp_path / "scaling_laws.png").exists()
