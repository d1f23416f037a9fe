"""The report from a run folder of which parts are missing."""

import pytest

from nanochat_hf import report, settings
from nanochat_hf.settings import UserError


def chat_result(accuracy, answer):
    row = {"task": "sums", "kind": "generative", "items": 50, "baseline": 0.0, "centered": accuracy}
    row |= {"accuracy": accuracy, "accuracy_low": accuracy - 0.1, "accuracy_high": accuracy + 0.1}
    shown = {"index": 0, "prompt": [{"role": "user", "content": "2+2 | ```?"}], "answer": answer, "score": accuracy}
    details = {"tasks": [row], "samples": {"sums": [shown]}}
    return {"evaluation": "chat", "metrics": {"chatcore": accuracy}, "details": details, "seconds": 30.0}


@pytest.fixture
def run_dir(tmp_path):
    """Tokenizer, base and SFT finished; mid and RL not; CORE on the base model only."""
    folder = tmp_path / "my_run"
    settings.save_run(folder / "tokenizer", "tokenizer", {"vocab_size": 4096}, seconds=4, metrics={"vocab_size": 4096})
    history = [{"step": step, "loss": 9 - step / 20, "eval_bits_per_byte": 3 - step / 60} for step in range(100)]
    settings.save_run(
        folder / "base", "pretrain", {"depth": 4}, seconds=600, peak_memory_mb=1234.5, history=history, metrics={}
    )
    settings.save_run(folder / "sft", "sft", {}, seconds=60, history=[], metrics={"loss": 0.5})
    core_row = {"task": "facts", "items": 10, "accuracy": 0.5, "accuracy_low": 0.2, "accuracy_high": 0.8}
    core_row |= {"baseline": 0.62, "corrected_baseline": 0.5}
    core = {
        "evaluation": "core",
        "metrics": {"core": -0.3158, "core_corrected": 0.0},
        "details": {"tasks": [core_row]},
    }
    settings.write_json(folder / "base" / "eval" / "core.json", core)
    metrics = {"bits_per_byte": 1.2345, "bits_per_byte_low": 1.2, "bits_per_byte_high": 1.3}
    bits = {"evaluation": "bits_per_byte", "metrics": metrics, "details": {}, "seconds": 2.0}
    settings.write_json(folder / "base" / "eval" / "bits_per_byte.json", bits)
    settings.write_json(folder / "base" / "eval" / "chat.json", chat_result(0.1, "five"))
    settings.write_json(folder / "sft" / "eval" / "chat.json", chat_result(0.9, "4"))
    return folder


def test_table_has_every_stage_and_a_dash_for_what_is_missing(run_dir):
    path, table = report.write_report(run_dir)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in path.read_text().splitlines()]
    assert ["metric", "BASE", "MID", "SFT", "RL"] in rows
    assert ["bits per byte (lower is better)", "1.2345 [1.2000, 1.3000]", "–", "–", "–"] in rows
    assert ["CORE", "-0.3158", "–", "–", "–"] in rows and ["CORE, corrected chance", "0.0000", "–", "–", "–"] in rows
    assert ["sums", "10.0 [0.0, 20.0]", "–", "90.0 [80.0, 100.0]", "–"] in rows
    assert ["ChatCORE", "0.1000", "–", "0.9000", "–"] in rows
    assert "sums" in table and "10.0 [0.0, 20.0]" in table and "|" not in table


def test_a_report_tells_nothing_about_the_machine(run_dir, monkeypatch):
    config = {"data": ["/home/me/secret/text"], "tasks": "conversations=/home/me/secret/chats.jsonl@5", "depth": 4}
    settings.save_run(run_dir / "mid", "midtrain", config)
    table = [["text", "bytes"], ["/home/me/secret/own.txt", "5"]]
    tokenizer = {"evaluation": "tokenizer", "metrics": {}, "details": {"table": table}}
    settings.write_json(run_dir / "tokenizer" / "eval" / "tokenizer.json", tokenizer)
    monkeypatch.chdir(run_dir)
    text = report.write_report(".")[0].read_text()
    assert text.startswith("# Report of my_run\n")
    assert "| own.txt | 5 |" in text and '"conversations=chats.jsonl@5"' in text and "secret" not in text


def test_page_has_cost_intervals_samples_and_settings(run_dir):
    path, _ = report.write_report(run_dir, title="A title")
    text = path.read_text()
    assert text.startswith("# A title")
    assert "| base | 10 min 00 s | 32 s | 1,234 MiB | 99 |" in text
    assert "| mid | – | – | – | – | – |" in text
    assert "90.0 [80.0, 100.0]" in text and "62.0 % (corrected 50.0 %)" in text
    assert "BASE (right): five" in text and "SFT (right): 4" in text
    assert "````text" in text, "a sample with a code fence needs a longer fence around it"
    assert '"depth": 4' in text


def test_pictures_are_drawn_and_linked_only_where_there_is_data(run_dir):
    path, _ = report.write_report(run_dir)
    linked = {line.split("](")[1].rstrip(")") for line in path.read_text().splitlines() if line.startswith("![")}
    drawn = {f"plots/{file.name}" for file in (run_dir / "plots").iterdir()}
    assert linked == drawn == {"plots/loss.png", "plots/bits_per_byte.png", "plots/scores.png"}
    for name in drawn:
        assert (run_dir / name).read_bytes().startswith(b"\x89PNG") and (run_dir / name).stat().st_size > 5000


def test_phases_of_pretraining_are_marked(run_dir):
    from nanochat_hf.report.plots import _draw_losses
    from nanochat_hf.report.stages import load_stage

    stage = load_stage(run_dir, "base")
    stage.run["config"]["phases"] = ["lists=0", "prose=3"]
    axes = _draw_losses([stage]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["lists", "prose"]
    assert [line.get_xdata()[0] for line in axes.lines[-2:]] == [0, 3]


def test_nothing_finished_or_damaged_files_are_named(tmp_path, run_dir):
    with pytest.raises(UserError, match="has no finished stage"):
        report.write_report(tmp_path / "empty")
    (run_dir / "base" / "eval" / "core.json").write_text("{")
    with pytest.raises(UserError, match="core.json is damaged"):
        report.write_report(run_dir)
    (run_dir / "base" / "eval" / "core.json").write_text('{"evaluation": "core"}')
    with pytest.raises(UserError, match="core.json is damaged"):
        report.write_report(run_dir)


def test_a_folder_of_a_stage_gives_the_report_of_its_run(run_dir, monkeypatch):
    expected, table = report.write_report(run_dir)
    text = expected.read_text()
    for place, folder in ((run_dir.parent, run_dir / "base"), (run_dir, "base/"), (run_dir / "base", ".")):
        monkeypatch.chdir(place)
        path, found = report.write_report(folder)
        assert path.resolve() == expected and found == table and path.read_text() == text
    assert not (run_dir / "base" / "report.md").exists() and text.startswith("# Report of my_run")
    settings.save_run(run_dir / "of_my_own", "sft", {})
    with pytest.raises(UserError, match="of_my_own has no finished stage in a folder tokenizer, base, mid"):
        report.write_report(run_dir / "of_my_own")


def test_the_microworlds_tasks_are_not_called_core(run_dir):
    row = {"task": "microworld_facts", "items": 10, "accuracy": 0.5, "accuracy_low": 0.2, "accuracy_high": 0.8}
    row |= {"baseline": 0.25, "corrected_baseline": 0.25}
    metrics = {"microworld_completion": 0.4321, "accuracy/microworld_facts": 0.5}
    result = {"evaluation": "core", "metrics": metrics, "details": {"tasks": [row]}}
    settings.write_json(run_dir / "base" / "eval" / "core.json", result)
    path, table = report.write_report(run_dir)
    page = path.read_text()
    assert "| microworld completion tasks | 0.4321 | – | – | – |" in page
    assert "## Microworld completion tasks, by task" in page and "| microworld_facts | 10 | 25.0 % | 50.0 " in page
    assert "CORE" not in page.replace("ChatCORE", "") and "CORE" not in table.replace("ChatCORE", "")


def test_an_answer_that_two_stages_gave_is_printed_once(run_dir):
    settings.write_json(run_dir / "sft" / "eval" / "chat.json", chat_result(0.2, "five"))
    text = report.write_report(run_dir)[0].read_text()
    assert "BASE, SFT (right): five" in text and text.count("): five") == 1


def test_stages_that_were_asked_other_items_are_not_mixed(run_dir):
    """Each answer stands below its own question, and the table says how many items each stage had."""
    other = chat_result(0.2, "seven")
    other["details"]["samples"]["sums"][0]["prompt"][0]["content"] = "3+4?"
    other["details"]["tasks"][0]["items"] = 1200
    settings.write_json(run_dir / "sft" / "eval" / "chat.json", other)
    text = report.write_report(run_dir)[0].read_text()
    assert "[user] 2+2 | ```?\n\nBASE (right): five\n" in text and "[user] 3+4?\n\nSFT (right): seven\n" in text
    assert "| sums | 50 / 1,200 | 0.0 % |" in text


def test_calls_and_answers_are_shown_as_everywhere(run_dir):
    result = chat_result(0.2, "It is 2+244.\n#### 4")
    (sample,) = result["details"]["samples"]["sums"]
    parts = [("text", "It is "), ("python", "2+2"), ("python_output", "4"), ("text", "4.\n#### 4")]
    sample["parts"] = [{"type": kind, "text": text} for kind, text in parts]
    sample["prompt"].insert(0, {"role": "assistant", "content": sample["parts"][:3]})
    for stage in ("base", "sft"):
        settings.write_json(run_dir / stage / "eval" / "chat.json", result)
    text = report.write_report(run_dir)[0].read_text()
    assert (
        "BASE, SFT (right): It is ⟨2+2 = 4⟩.\nAnswer: 4" in text and "[assistant] It is ⟨2+2 = 4⟩\n[user] 2+2" in text
    )
    assert "2+24" not in text and "####" not in text


def test_the_page_says_nothing_twice(run_dir):
    """Neither a heading nor a table nor a sentence comes twice, and numbers are readable."""
    metrics = {"flops": 4.43e16, "tokens": 1234567, "val_bpb": 1.23456}
    settings.save_run(run_dir / "base", "pretrain", {}, seconds=4000.4, metrics=metrics)
    text = report.write_report(run_dir)[0].read_text()
    paragraphs = [part for part in text.split("\n\n") if not part.startswith(("```", "Right answers in %"))]
    assert len(set(paragraphs)) == len(paragraphs)
    assert "FLOPs 4.43e+16; tokens 1,234,567; validation bits per byte 1.235" in text and "1 h 06 min" in text


def test_pass_at_k_is_drawn_where_it_was_measured_more_than_once(run_dir):
    from nanochat_hf.report.plots import draw_plots
    from nanochat_hf.report.stages import load_stage

    measured = [{"step": step, "val_pass@1/sums": step / 20, "val_pass@4/sums": 0.9} for step in (0, 5, 10)]
    for history, drawn in ((measured[:1], False), (measured, True)):
        settings.save_run(run_dir / "rl", "rl", {}, seconds=1, history=history, metrics={})
        names = [name for name, _ in draw_plots([load_stage(run_dir, "rl")], run_dir / "plots")]
        assert ("pass_at_k.png" in names) == drawn == (run_dir / "plots" / "pass_at_k.png").exists()


def test_dpo_has_a_column_where_it_was_run(run_dir):
    settings.save_run(run_dir / "dpo", "dpo", {}, seconds=1, history=[{"step": 1, "loss": 0.6}], metrics={})
    path, _ = report.write_report(run_dir)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in path.read_text().splitlines()]
    assert ["metric", "BASE", "MID", "SFT", "DPO", "RL"] in rows
