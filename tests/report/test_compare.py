"""`nanochat-hf report RUN1 RUN2`: paired where the items are the same, and only there."""

from pathlib import Path

import pytest

from nanochat_hf import settings
from nanochat_hf.cli.main import run_command
from nanochat_hf.evals.items import pack
from nanochat_hf.evals.metrics.formulas import accuracy_with_interval, difference_with_test
from nanochat_hf.report import compare_runs
from nanochat_hf.settings import UserError

FIRST = [1.0, 0.0] * 100
SECOND = [1.0, 1.0, 1.0, 0.0] * 50


def write_run(folder, scores, *, digest=7, nats=(10.0, 20.0, 40.0)):
    """A run whose stage sft has results for bits per byte and one chat task."""
    sizes = [20, 30, 60]
    bits = sum(nats) / sum(sizes) / 0.6931471805599453
    details = {"items": {"digest": 3, "nats": pack(nats), "bytes": pack(sizes)}}
    result = {"evaluation": "bits_per_byte", "metrics": {"bits_per_byte": bits}, "details": details}
    settings.write_json(folder / "sft" / "eval" / "bits_per_byte.json", result)
    row = {"task": "gsm8k", "items": len(scores), "baseline": 0.0, **accuracy_with_interval(scores)}
    details = {"tasks": [row], "items": {"gsm8k": {"digest": digest, "scores": pack(scores)}}}
    result = {"evaluation": "chat", "metrics": {"chatcore": row["accuracy"]}, "details": details}
    settings.write_json(folder / "sft" / "eval" / "chat.json", result)
    return folder


def rows_of(page):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]


def test_runs_with_the_same_items_are_compared_item_by_item(tmp_path):
    runs = [write_run(tmp_path / "one", FIRST), write_run(tmp_path / "two", SECOND, nats=(9.0, 18.0, 37.0))]
    page, text = compare_runs(runs)
    titles, _, bits, chatcore, task = rows_of(page)
    assert titles == ["metric", "one", "two", "two − one", "p"]
    found = difference_with_test(FIRST, SECOND)
    low, high = 100 * found["low"], 100 * found["high"]
    assert task[0] == "gsm8k" and task[1].startswith("50.0 [43") and task[2].startswith("75.0 [6")
    assert task[3:] == [f"+25.0 [{low:+.1f}, {high:+.1f}]", "< 0.001"]
    assert chatcore[3] == f"+0.2500 [{found['low']:+.4f}, {found['high']:+.4f}]"
    assert bits[3].startswith("-0.0787 [-0.") and float(bits[3].split("[")[1].split(",")[0]) < -0.0787
    assert "SFT" in text and "sign test" in text and "sign test" in page


def test_runs_with_other_items_are_not_paired(tmp_path):
    runs = [write_run(tmp_path / "one", FIRST), write_run(tmp_path / "two", SECOND, digest=8)]
    rows = rows_of(compare_runs(runs)[0])
    assert rows[-1][0] == "gsm8k" and rows[-1][2].startswith("75.0") and rows[-1][3:] == ["", ""]
    assert rows[-2][0] == "ChatCORE" and rows[-2][3:] == ["", ""]


def test_a_metric_without_scores_of_items_has_no_difference(tmp_path):
    """Not the difference of another metric."""
    runs = []
    for name, sensible, scores in (("one", 0.9, FIRST), ("two", 0.1, SECOND)):
        runs.append(write_run(tmp_path / name, scores))
        row = {"task": "all", "items": 9, "baseline": 0.0, **accuracy_with_interval([sensible] * 9)}
        result = {"evaluation": "strangers", "metrics": {"strangers": sensible}, "details": {"tasks": [row]}}
        settings.write_json(runs[-1] / "sft" / "eval" / "strangers.json", result)
        details = {"tasks": [row | {"task": "arc"}], "items": {"arc": {"digest": 1, "scores": pack(scores)}}}
        result = {"evaluation": "core", "metrics": {"core": 0.5}, "details": details}
        settings.write_json(runs[-1] / "sft" / "eval" / "core.json", result)
    (row,) = [row for row in rows_of(compare_runs(runs)[0]) if "stranger" in row[0]]
    assert [float(row[1]), float(row[2]), *row[3:]] == [0.9, 0.1, "", ""]


def test_several_runs_and_runs_of_the_same_name(tmp_path):
    runs = [write_run(tmp_path / name / "run", FIRST) for name in "abc"]
    titles = rows_of(compare_runs(runs)[0])[0]
    assert len(titles) == 8 and titles[1] == str(runs[0]) and titles[6] == f"{runs[2]} − {runs[0]}"


def test_the_command_prints_and_writes_the_comparison(tmp_path, capsys):
    runs = [str(write_run(tmp_path / name, FIRST)) for name in ("one", "two")]
    run_command(["report", *runs, "--output", str(tmp_path / "comparison.md")])
    assert "+0.0 [+0.0, +0.0]" in capsys.readouterr().out
    assert (tmp_path / "comparison.md").read_text().startswith("# one and two")
    settings.save_run(Path(runs[1]) / "base", "pretrain", {})
    run_command(["report", runs[0], f"{runs[1]}/base/"])
    assert "+0.0 [+0.0, +0.0]" in capsys.readouterr().out, "a folder of a stage stands for its run"
    with pytest.raises(UserError, match="give another --output"):
        run_command(["report", *runs, "--output", str(tmp_path / "no" / "folder.md")])
    with pytest.raises(UserError, match="--output is for a comparison"):
        run_command(["report", runs[0], "--output", "x.md"])


def test_stages_of_one_run_are_no_two_runs(tmp_path):
    run = write_run(tmp_path / "one", FIRST)
    settings.save_run(run / "sft", "sft", {})
    with pytest.raises(UserError, match="are of one run; the report of that run shows its stages side by side"):
        compare_runs([run, run / "sft"])


def test_runs_without_anything_in_common_are_named(tmp_path):
    one = write_run(tmp_path / "one", FIRST)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no evaluated stage"):
        compare_runs([one, tmp_path / "empty"])
    other = write_run(tmp_path / "two", FIRST)
    (other / "sft").rename(other / "rl")
    with pytest.raises(UserError, match="no evaluated stage in common: .*one has sft; .*two has rl"):
        compare_runs([one, other])
