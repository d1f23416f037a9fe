"""The runner of all stages, as a command."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat_hf import settings
from nanochat_hf.settings import UserError
from nanochat_hf.stages import speedrun as pipeline
from nanochat_hf.tasks import fingerprints_of

SPEEDRUN = Path(__file__).parents[2] / "training" / "speedrun.py"


def speedrun(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SPEEDRUN), *options], capture_output=True, text=True, timeout=120)


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """A run whose tokenizer has finished."""
    settings.save_run(tmp_path / "run" / "tokenizer", "tokenizer", {"vocab_size": 512, "data": "microworld"})
    return tmp_path / "run"


def test_an_unknown_stage_is_named():
    result = speedrun("--stages", "tokenizer", "pretraining")
    assert result.returncode == 2 and "--stages pretraining is not known; use tokenizer, pretrain," in result.stderr


def test_a_mistake_in_a_later_section_is_found_before_the_first_stage(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    for text, says in (
        ("rl:\n  temperature: hot\n", "temperature is a number"),
        ("rl:\n  val_tasks: [gsm9k]\n", "there is no task 'gsm9k'"),
        ("evaluation:\n  num_samples: 0\n", "num_samples is a whole number from 1"),
        ("pretrain:\n  no_such_setting: 1\n", "the section pretrain: has no setting named no_such_setting"),
        ("pretrain:\n  output_dir: mine\n", "the section pretrain: has output_dir, which train sets itself; remove"),
        ("sft:\n  model: mine\n", "the section sft: has model, which train sets itself; remove it there"),
        ("tokenizer:\n  vocab_size: 300\n", "the evaluation at the end has no chat tasks; name them as tasks in"),
    ):
        recipe.write_text(text)
        result = speedrun("--config", str(recipe), "--run_dir", str(tmp_path / "run"))
        assert result.returncode == 2 and says in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
    assert not (tmp_path / "run").exists()


def test_without_a_recipe_no_training_begins(tmp_path):
    result = speedrun("--run_dir", str(tmp_path / "run"))
    assert result.returncode == 2 and "train needs a recipe: a YAML file, or one of classic-d20," in result.stderr
    assert not (tmp_path / "run").exists()


def test_what_is_not_given_is_said_before_the_first_stage(tmp_path):
    run_dir = tmp_path / "run"
    result = speedrun("--config", "local", "--run_dir", str(run_dir))
    assert result.returncode == 2 and "local needs text; give --set text=VALUE" in result.stderr
    result = speedrun("--config", "local", "--run_dir", str(run_dir), "--set", "text=microworld", "chat=./no/chats")
    assert result.returncode == 2 and "needs ./no/chats, and there is no such file or folder" in result.stderr
    assert not run_dir.exists()
    result = speedrun("--config", "local", "--run_dir", str(run_dir), "--set", "text=./no/text")
    assert "local: what needs chat is left out; --set chat=VALUE adds it" in result.stdout
    assert result.returncode == 2 and "no data at ./no/text" in result.stderr


def test_a_stage_made_with_other_settings_is_not_passed_off_as_finished(run_dir, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("tokenizer:\n  vocab_size: 1024\n")
    result = speedrun("--config", str(recipe), "--run_dir", str(run_dir), "--stages", "tokenizer")
    assert result.returncode == 2
    assert "made with vocab_size: 512" in result.stderr and "--fresh" in result.stderr


def test_starting_over_keeps_its_hands_off_what_no_stage_made(run_dir):
    (run_dir / "thesis.tex").write_text("years of work")
    result = speedrun("--run_dir", str(run_dir), "--stages", "tokenizer", "--fresh")
    assert result.returncode == 2 and "thesis.tex" in result.stderr
    assert (run_dir / "thesis.tex").exists() and (run_dir / "tokenizer").exists()


def test_a_finished_stage_holds_only_its_model(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("tokenizer:\n  data: [microworld]\n  vocab_size: 300\n  max_chars: 100_000\n")
    left = tmp_path / "run" / "tokenizer" / "checkpoint-10"  # as an interrupted stage leaves it
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"weights")
    speedrun("--config", str(recipe), "--run_dir", str(tmp_path / "run"), "--stages", "tokenizer")
    assert settings.load_run(tmp_path / "run" / "tokenizer") and not left.exists()


def test_a_stage_without_its_predecessor_says_what_to_add(run_dir, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("evaluation:\n  evaluations: [core]\n")
    result = speedrun("--config", str(recipe), "--run_dir", str(run_dir), "--stages", "sft")
    assert result.returncode == 2 and "add it to --stages" in result.stderr


def test_a_failing_stage_stops_the_pipeline_and_keeps_what_was_made(run_dir, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("pretrain:\n  depth: 1\nevaluation:\n  evaluations: bits_per_byte\n")
    result = speedrun("--config", str(recipe), "--run_dir", str(run_dir), "--stages", "tokenizer", "pretrain")
    assert result.returncode == 2
    assert "finished already" in result.stdout and "pretrain stopped" in result.stderr
    assert settings.load_run(run_dir / "tokenizer") and not settings.load_run(run_dir / "base")


def test_a_finished_stage_is_compared_as_yaml_means_it(tmp_path):
    made = {"data": ["microworld"], "vocab_size": 512, "rate": 0.02, "resume": True, "every": 0, "compile": "false"}
    settings.save_run(tmp_path / "run" / "tokenizer", "tokenizer", made | {"output_dir": str(Path.home() / "x")})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "tokenizer:\n  data: microworld\n  vocab_size: '512'\n  rate: 2e-2\n  resume: on\n  every: no\n"
        "  compile: false\n  output_dir: ~/x\n"
    )
    options = ("--run_dir", str(tmp_path / "run"), "--stages", "tokenizer")
    assert "finished already" in speedrun("--config", str(recipe), *options).stdout
    recipe.write_text("tokenizer:\n  vocab_size: many\n")
    refused = speedrun("--config", str(recipe), *options)
    assert refused.returncode == 2 and "made with vocab_size: 512, the recipe now says many" in refused.stderr
    # a setting that is newer than the folder: its default is what the folder was made with
    recipe.write_text("tokenizer:\n  max_chars: 7\n")
    refused = speedrun("--config", str(recipe), *options)
    assert refused.returncode == 2 and "made with max_chars: " in refused.stderr, refused.stderr


def test_a_run_folder_that_is_a_file_is_found_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    result = speedrun("--run_dir", str(tmp_path / "file" / "run"))
    assert result.returncode == 2 and "is a file, where a folder belongs" in result.stderr and not result.stdout
    assert "give another --run_dir or move the file" in result.stderr


def test_a_missing_package_is_named_before_the_first_stage(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'nanochat-hf\[train\]'"):
        pipeline.main(["smoke"])


def test_the_file_for_accelerate_is_the_users_or_the_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pretrain = pipeline.STAGES[1]
    for expected in (settings.LAUNCH_FILES / "accelerate_config.yaml", Path("accelerate_config.yaml")):
        config = pipeline.SpeedrunConfig(accelerate_config="accelerate_config.yaml")
        pipeline.check_stages(config, [pretrain])
        assert pipeline.launcher(config, pretrain)[-2:] == ["--config_file", str(expected)]
        (tmp_path / "accelerate_config.yaml").write_text("num_processes: 4\n")


def test_a_missing_core_bundle_is_named_before_the_first_stage(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    run_dir = tmp_path / "run"
    recipe.write_text("tokenizer:\n  data: [microworld]\nevaluation:\n  core_bundle: no/such/bundle\n")
    result = speedrun("--config", str(recipe), "--run_dir", str(run_dir), "--stages", "tokenizer")
    assert result.returncode == 2 and not run_dir.exists()
    assert "needs the CORE bundle" in result.stderr and "no/such/bundle is not a CORE bundle" in result.stderr
    recipe.write_text(recipe.read_text() + "  evaluations: [bits_per_byte]\nspeedrun:\n  stages: [sft]\n")
    result = speedrun("--config", str(recipe), "--run_dir", str(run_dir))
    assert "add it to --stages" in result.stderr, "an evaluation without CORE needs no bundle"


def test_a_finished_stage_after_one_that_is_to_be_trained_is_named(run_dir):
    """It was made from another model."""
    for folder, before in (("mid", "base"), ("sft", "mid")):
        settings.save_run(run_dir / folder, folder, {"model": str(run_dir / before)})
    kept = sorted(run_dir.rglob("*"))
    result = speedrun("--run_dir", str(run_dir), "--stages", "tokenizer", "pretrain", "midtrain", "sft")
    assert result.returncode == 2 and f"delete {run_dir / 'mid'}, {run_dir / 'sft'} too" in result.stderr
    assert not result.stdout and sorted(run_dir.rglob("*")) == kept
    run_dir = run_dir.rename(run_dir.parent / "moved")
    result = speedrun("--run_dir", str(run_dir), "--stages", "pretrain")
    assert result.returncode == 2 and f"{run_dir / 'sft'} began with an earlier base" in result.stderr
    settings.save_run(run_dir / "rl", "rl", {"model": str(run_dir / "sft")})
    dpo = next(stage for stage in pipeline.STAGES if stage.name == "dpo")
    assert pipeline.unfinished(run_dir, [dpo]) == [dpo], "RL did not begin with DPO's model"


def test_what_a_stage_chose_by_itself_is_no_other_setting(tmp_path):
    base, recipe = tmp_path / "run" / "base", tmp_path / "recipe.yaml"
    settings.save_run(base, "pretrain", {"packing": "keep_tails", "preset": "small", "device_batch_size": 3})
    stage, size = next(stage for stage in pipeline.STAGES if stage.name == "pretrain"), "  device_batch_size: 16\n"
    recipe.write_text(f"pretrain:\n  packing: auto\n  preset: auto\n  auto_device_batch: false\n{size}")
    with pytest.raises(UserError, match="made with device_batch_size: 3, the recipe now says 16"):
        pipeline.check_unchanged(base, stage, str(recipe), {})
    settings.save_run(base, "pretrain", {**settings.load_run(base)["config"], "auto_device_batch": True})
    recipe.write_text(f"pretrain:\n  packing: auto\n  preset: auto\n  auto_device_batch: true\n{size}")
    pipeline.check_unchanged(base, stage, str(recipe), {})
    recipe.write_text("pretrain:\n  packing: best_fit\n")
    with pytest.raises(UserError, match="made with packing: keep_tails, the recipe now says best_fit"):
        pipeline.check_unchanged(base, stage, str(recipe), {})


def test_lists_with_commas_are_compared_as_their_stage_reads_them(tmp_path):
    settings.save_run(tmp_path / "dpo", "dpo", {"loss_type": ["sigmoid", "sft"]})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dpo:\n  loss_type: sigmoid,sft\n")
    stage = next(stage for stage in pipeline.STAGES if stage.name == "dpo")
    pipeline.check_unchanged(tmp_path / "dpo", stage, str(recipe), {})


def stage_named(name):
    return next(stage for stage in pipeline.STAGES if stage.name == name)


def test_a_finished_stage_notices_other_text_under_the_same_name(tmp_path):
    recipe, texts = tmp_path / "recipe.yaml", tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("".join(f"Line {i} of a short text about {7 * i}.\n" for i in range(400)))
    (texts / "b.txt").write_text("Held out.\n")
    recipe.write_text(
        f"tokenizer:\n  data: ['{texts}']\n  vocab_size: 300\nevaluation:\n  evaluations: [bits_per_byte]\n"
    )
    options = ("--config", str(recipe), "--run_dir", str(tmp_path / "run"), "--stages", "tokenizer")
    speedrun(*options)
    recipe.write_text(recipe.read_text().replace(f"'{texts}'", f"'{texts}/'"))
    assert "finished already" in speedrun(*options).stdout, "the same folder"
    recipe.write_text(f"common:\n  on_bad_file: skip\n{recipe.read_text()}")
    assert "finished already" in speedrun(*options).stdout, "the same files"
    recipe.write_text(recipe.read_text().replace(f"'{texts}/'", f"'{texts}'"))
    (texts / "c.txt").write_text("More.\n")
    refused = speedrun(*options)
    assert refused.returncode == 2 and "finished already" not in refused.stdout
    assert f"the data in {texts} has changed (3 files of " in refused.stderr
    made = f"since {tmp_path / 'run' / 'tokenizer'} was made; put the data back as it was"
    assert made in refused.stderr
    record = settings.load_run(tmp_path / "run" / "tokenizer")
    del record["fingerprint"]
    settings.write_json(tmp_path / "run" / "tokenizer" / "run.json", record)
    assert "finished already" in speedrun(*options).stdout, "of an older version: compared by name"
    recipe.write_text(recipe.read_text().replace(f"'{texts}'", "microworld"))
    assert "the recipe now says ['microworld']" in speedrun(*options).stderr


@pytest.mark.parametrize("name", ["midtrain", "sft", "dpo", "rl"])
def test_a_finished_stage_notices_other_chats_under_the_same_name(name, tmp_path):
    chats, stage = tmp_path / "chats.jsonl", stage_named(name)
    chats.write_text("[]\n")
    specs = [f"conversations={chats}@4", "microworld-talk@2"]
    made = {"fingerprint": fingerprints_of(specs)}
    settings.save_run(tmp_path / name, name, {"tasks": specs, "val_tasks": []}, **made)
    pipeline.check_unchanged(tmp_path / name, stage, None, {})
    chats.write_text("[]\n[]\n")
    with pytest.raises(UserError, match=f"the data in {chats} has changed .* since .* was made; put the data back"):
        pipeline.check_unchanged(tmp_path / name, stage, None, {})
    chats.unlink()  # it takes up room
    pipeline.check_unchanged(tmp_path / name, stage, None, {})


def test_what_changed_is_said_before_the_first_stage(run_dir, tmp_path):
    chats, recipe = tmp_path / "chats.jsonl", tmp_path / "recipe.yaml"
    chats.write_text("[]\n")
    specs = [f"conversations={chats}"]
    config = {"tasks": specs, "val_tasks": [], "model": "elsewhere"}
    settings.save_run(run_dir / "rl", "rl", config, fingerprint=fingerprints_of(specs))
    chats.write_text("[]\n[]\n")
    recipe.write_text("dpo:\n  tasks: [gsm8k]\nevaluation:\n  tasks: [gsm8k]\n")
    options = ("--stages", "dpo", "rl")
    result = speedrun("--config", str(recipe), "--run_dir", str(run_dir), *options)
    assert f"the data in {chats} has changed" in result.stderr and "dpo →" not in result.stdout


def test_a_second_pipeline_in_the_same_folder_is_refused(run_dir, tmp_path):
    code = "import sys, time; from nanochat_hf.settings import folder_lock; folder_lock.claim(sys.argv[1])\n"
    code += "print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, run_dir], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        try:
            for more in ([], ["--fresh"]):
                result = speedrun("--run_dir", str(run_dir), "--stages", "tokenizer", *more)
                assert result.returncode == 2 and not result.stdout
                assert f"another command is writing to {run_dir}; wait until it ends or stop it" in result.stderr
                assert "give another --run_dir" in result.stderr and settings.load_run(run_dir / "tokenizer")
        finally:
            other.kill()
    pipeline.delete_run(run_dir)
    assert [path.name for path in run_dir.iterdir()] == [".lock"]


def test_the_commands_at_the_end_can_be_pasted(tmp_path, capsys):
    folder = tmp_path / "with ö" / "rl"
    settings.save_run(folder, "rl", {})
    pipeline.print_summary(folder.parent, folder, 60)
    lines = capsys.readouterr().out.splitlines()
    for words, number in (("talk to it", 2), ("in a browser", 2), ("checkpoints", 0)):
        (line,) = [line for line in lines if words in line]
        assert shlex.split(line.strip().removeprefix(words))[number] == str(folder)


def test_starting_over_checks_the_recipe_first(run_dir, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("tokenizer:\n  no_such_setting: 1\n")
    options = ("--config", str(recipe), "--run_dir", str(run_dir), "--stages", "tokenizer", "--fresh")
    result = speedrun(*options)
    assert result.returncode == 2 and "no_such_setting" in result.stderr and settings.load_run(run_dir / "tokenizer")
    result = speedrun("--run_dir", str(run_dir), "--stages", "sft", "--fresh")
    assert "sft needs what is in it" in result.stderr and settings.load_run(run_dir / "tokenizer")


def test_sigterm_is_passed_on_to_the_stage_that_runs(tmp_path):
    stage = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); print('begun', flush=True)"
    parent = (
        "import sys; from nanochat_hf.stages.speedrun import run\n"
        f"run([sys.executable, '-c', {stage + '; time.sleep(60)'!r}], 'sft')"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    process.terminate()
    assert process.wait(timeout=30) == settings.STOPPED_BY_SIGTERM
    assert not process.stdout.read(), "the stage has ended, too"


def test_a_command_that_does_not_handle_sigterm_is_stopped(tmp_path):
    child = "import time; print('begun', flush=True); time.sleep(60)"
    parent = (
        f"import sys; from nanochat_hf.stages.speedrun import run\nrun([sys.executable, '-c', {child!r}], 'report')"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", parent], text=True, **pipes)
    assert process.stdout.readline() == "begun\n"
    process.terminate()
    said = process.communicate(timeout=30)[1]
    assert (
        process.returncode == 143 and said == "report was stopped by SIGTERM; run the same command again to continue\n"
    )
