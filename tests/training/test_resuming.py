"""What a killed stage keeps, and what it refuses to go on with."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from chat_toy import TEXTS, make_base, run_stage, weights

from nanochat_hf import settings
from nanochat_hf import tokenizer as tokenizers
from nanochat_hf.settings import UserError, folder_lock, load_run
from nanochat_hf.trainers import checkpoints, stage
from nanochat_hf.trainers.callbacks import TrainingProgress

CHAT = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am nanochat."}]


class Killed(BaseException):
    """Stands for SIGKILL: no code of ours catches it."""


def kill_at(step, monkeypatch):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise Killed

    monkeypatch.setattr(TrainingProgress, "on_step_end", on_step_end)


def run(stage, options):
    run_stage(stage, *[word for name, value in options.items() for word in (f"--{name}", *_words(value))])


def _words(value):
    return value if isinstance(value, list) else [value]


HOLD = """
import sys, time
from nanochat_hf.settings import folder_lock
folder_lock.claim(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


def test_a_folder_in_which_another_command_trains_is_left_alone(tmp_path, monkeypatch):
    """The other one writes, is killed, and no longer counts."""
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        try:
            for process in "01":  # process 0 asks for all of a job
                monkeypatch.setenv("RANK", process)
                if process == "0":
                    with pytest.raises(UserError, match=f"another command is writing to {tmp_path}; wait until"):
                        folder_lock.claim(tmp_path)
                else:
                    folder_lock.claim(tmp_path)
            monkeypatch.delenv("RANK")
            with pytest.raises(UserError, match="another command is writing"):
                options = {"model": make_base(tmp_path / "base"), "output_dir": tmp_path}
                run("sft", options | {"tasks": "microworld-talk@2"})
            assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "base"]
        finally:
            other.kill()
    folder_lock.claim(tmp_path)


# -- pretraining -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizers.train(TEXTS, 300).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def interrupted(tokenizer, tmp_path_factory):
    """A pretraining run that was killed after its checkpoint of step 2: (options, folder)."""
    folder = tmp_path_factory.mktemp("pretrain")
    texts = folder / "texts.txt"
    texts.write_text("\n\n".join(TEXTS * 20))
    options = {"data": texts, "tokenizer": tokenizer, "depth": 1, "aspect_ratio": 32, "head_dim": 32}
    options |= {"sequence_length": 32, "num_iterations": 4, "total_batch_size": 64, "device_batch_size": 2}
    options |= {"eval_every": 0, "save_every": 2, "num_threads": 1, "packing": "keep_tails"}
    with pytest.MonkeyPatch.context() as patch:
        kill_at(3, patch)
        with pytest.raises(Killed):
            run("pretrain", options | {"output_dir": folder / "run"})
    return options, folder / "run"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"matrix_lr": 0.03}, r"another matrix_lr \(0.02, not 0.03\)"),
        ({"weight_decay": 0.5}, "another weight_decay"),
        ({"warmup_steps": 1}, "another warmup_steps"),
        ({"num_iterations": 6}, r"another num_iterations \(4, not 6\)"),
        ({"total_batch_size": 128}, "another lr_scale, total_batch_size|another total_batch_size"),
        ({"depth": 2}, "another depth"),
        ({"sequence_length": 16}, "another sequence_length"),
        ({"data": "microworld"}, "another data"),
        ({"packing": "best_fit"}, "another packing"),
        ({"data_seed": 1}, "another data_seed"),
        ({"seed": 1}, "another seed"),
        ({"tokenizer": "OTHER"}, "another tokenizer"),
        ({"resume": "false"}, "--resume false would start over"),
    ],
    ids=str,
)
def test_pretraining_does_not_go_on_as_another_run(interrupted, tokenizer, tmp_path, changes, words):
    options, folder = interrupted
    if "tokenizer" in changes:  # the same name of a folder, other tokens
        tokenizers.train([text.upper() for text in TEXTS], 300).save_pretrained(tmp_path / "tokenizer")
        changes = {"tokenizer": tmp_path / "tokenizer"}
    kept = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=words):
        run("pretrain", options | {"output_dir": folder} | changes)
    assert sorted(folder.rglob("*")) == kept


@pytest.fixture
def copied(interrupted, tmp_path):
    """The interrupted run and its text, in a place of their own: (options, folder)."""
    options, folder = interrupted
    shutil.copytree(folder, tmp_path / "run")
    shutil.copy(options["data"], tmp_path / "texts.txt")
    return options | {"data": tmp_path / "texts.txt", "output_dir": tmp_path / "run"}, tmp_path / "run"


def test_pretraining_does_not_go_on_with_another_text_under_the_same_name(copied):
    options, folder = copied
    record = json.loads((folder / "started.json").read_text())
    record["data"] = [str(options["data"])]
    (folder / "started.json").write_text(json.dumps(record))
    text, kept = options["data"].read_text(), sorted(folder.rglob("*"))
    for changed, words in (
        (text + "One more.", r"1 file of .* bytes; before: 1 file of"),
        (text.upper(), "same size"),
    ):
        options["data"].write_text(changed)
        # what follows from the length of the text is not blamed
        with pytest.raises(UserError, match=rf"the data in {options['data']} has changed \(.*{words}.*; put"):
            run("pretrain", options | {"num_iterations": 6})
        assert sorted(folder.rglob("*")) == kept
    options["data"].write_text(text)
    run("pretrain", options)
    (found,), (known,) = load_run(folder)["fingerprint"], record["fingerprint"]
    assert found == known | {"source": str(options["data"])}


def test_pretraining_goes_on_with_the_same_text_under_another_name(copied, tmp_path, monkeypatch, capsys):
    options, folder = copied
    monkeypatch.chdir(tmp_path)
    run("pretrain", options | {"data": "./texts.txt"})
    assert "resuming from" in capsys.readouterr().out and load_run(folder)


def test_a_record_of_an_older_version_compares_the_names_of_data(copied):
    options, folder = copied
    record = json.loads((folder / "started.json").read_text())
    del record["fingerprint"]
    (folder / "started.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="another data"):
        run("pretrain", options)
    record["data"] = [str(options["data"])]
    (folder / "started.json").write_text(json.dumps(record))
    run("pretrain", options)
    assert load_run(folder)


def test_pretraining_does_not_train_a_folder_again_that_another_command_has_finished(copied, monkeypatch):
    options, folder = copied

    def claim(folder):
        settings.save_run(folder, "pretrain", {})

    monkeypatch.setattr(folder_lock, "claim", claim)
    with pytest.raises(UserError, match="run is finished; delete that folder"):
        run("pretrain", options)


def test_pretraining_goes_on_where_it_can_and_says_what_is_different(interrupted, tokenizer, tmp_path, capsys):
    options, folder = interrupted
    shutil.copytree(folder, tmp_path / "run")
    shutil.copytree(tokenizer, tmp_path / "tokenizer")  # the same tokens in another place
    changes = {"tokenizer": tmp_path / "tokenizer", "save_every": 3, "device_batch_size": 1, "dtype": "float32"}
    run("pretrain", options | {"output_dir": tmp_path / "run"} | changes)
    said = capsys.readouterr().out
    assert "going on with another dtype: float32, not auto" in said and "resuming from" in said
    assert "save_every" not in said and load_run(tmp_path / "run")["history"][-1]["step"] == 4


def test_pretraining_killed_after_its_last_checkpoint_trains_no_further_step(
    interrupted, tokenizer, tmp_path, monkeypatch
):
    options, folder = interrupted
    shutil.copytree(folder, tmp_path / "run")
    options = options | {"output_dir": tmp_path / "run"}
    with monkeypatch.context() as patch:

        def finish(*args, **kwargs):
            raise Killed

        patch.setattr(stage, "finish", finish)
        with pytest.raises(Killed):
            run("pretrain", options)
    kept = weights(tmp_path / "run" / "checkpoint-4")
    run("pretrain", options)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(tmp_path / "run").items())
    assert max(row["step"] for row in load_run(tmp_path / "run")["history"]) <= 4


def test_a_resumed_run_measures_and_saves_as_its_new_command_says(interrupted, tmp_path):
    options, folder = interrupted
    shutil.copytree(folder, tmp_path / "run")
    new = {"save_every": 1, "eval_every": 1, "eval_tokens": 64, "log_every": 1, "output_dir": tmp_path / "run"}
    saved = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "seal", lambda folder: saved.append(folder.name))
        run("pretrain", options | new)
    history = load_run(tmp_path / "run")["history"]
    assert [row["step"] for row in history if "val_bpb" in row and row["step"] > 2] == [3, 4]
    assert saved == ["checkpoint-3", "checkpoint-4"]


# -- chat stages -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base") / "base", sequence_length=64)


@pytest.fixture
def chat_options(base, tmp_path):
    chats = tmp_path / "chats.jsonl"
    chats.write_text((json.dumps(CHAT) + "\n") * 24)
    options = {"model": base, "tasks": f"conversations={chats}", "val_tasks": f"conversations={chats}@4"}
    return options | {"num_iterations": 3, "total_batch_size": 128, "device_batch_size": 2, "num_threads": 1}


@pytest.mark.parametrize("stage", ["sft", "midtrain"])
@pytest.mark.parametrize("eval_every", [0, 3], ids=["after the last step", "at the last step"])
def test_a_stage_killed_in_its_last_evaluation_keeps_its_weights(
    stage, eval_every, chat_options, tmp_path, monkeypatch, capsys
):
    from nanochat_hf.trainers.supervised import PackedRowsTrainer

    options = chat_options | {"eval_every": eval_every, "output_dir": tmp_path / "run"}
    with monkeypatch.context() as patch:

        def evaluate(self, *args, **kwargs):
            raise Killed

        patch.setattr(PackedRowsTrainer, "evaluate", evaluate)
        with pytest.raises(Killed):
            run(stage, options)
    assert not load_run(tmp_path / "run")
    kept = weights(tmp_path / "run")
    run(stage, options)
    assert load_run(tmp_path / "run")["metrics"]
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(tmp_path / "run").items())
    if not eval_every:  # the checkpoint of the last step was written, too: only the evaluation is repeated
        assert "resuming from" in capsys.readouterr().out


@pytest.mark.parametrize(("minutes", "steps"), [(1e-9, [1, 2, 3]), (0, []), (60, [])])
def test_a_checkpoint_is_written_when_the_last_one_is_old(chat_options, tmp_path, minutes, steps):
    options = chat_options | {"save_every": 0, "save_minutes": minutes, "save_total_limit": 9, "val_tasks": "[]"}
    run("sft", options | {"output_dir": tmp_path / "run"})
    assert sorted(int(path.name.split("-")[1]) for path in (tmp_path / "run").glob("checkpoint-*")) == steps


@pytest.fixture
def interrupted_sft(chat_options, tmp_path, monkeypatch):
    """The options of an SFT in `run` that was killed after its checkpoint of step 1."""
    options = chat_options | {"save_every": 1, "output_dir": tmp_path / "run"}
    with monkeypatch.context() as patch:
        kill_at(2, patch)
        with pytest.raises(Killed):
            run("sft", options)
    return options


def test_a_chat_stage_names_the_setting_that_changed(interrupted_sft, tmp_path):
    with pytest.raises(UserError, match=r"another matrix_lr \(0.02, not 0.5\)"):
        run("sft", interrupted_sft | {"matrix_lr": 0.5})
    (tmp_path / "run" / "started.json").write_text("{")
    with pytest.raises(UserError, match="started.json is damaged"):
        run("sft", interrupted_sft)


def test_a_chat_stage_does_not_go_on_with_other_chats_under_the_same_name(interrupted_sft, tmp_path):
    chats = tmp_path / "chats.jsonl"
    before = chats.read_text()
    chats.write_text(before + before)
    with pytest.raises(UserError, match=rf"the data in {chats} has changed .* since the run in .*run began"):
        run("sft", interrupted_sft)
    chats.write_text(before)
    run("sft", interrupted_sft)
    (read,) = load_run(tmp_path / "run")["fingerprint"]
    assert read["source"] == str(chats) and read["files"] == 1


def test_rows_are_made_again_of_other_chats(chat_options, tmp_path, monkeypatch):
    """There is no checkpoint yet, so the run begins anew: with what is in the file."""
    options = chat_options | {"save_every": 0, "output_dir": tmp_path / "run", "val_tasks": "[]"}
    chats, rows = tmp_path / "chats.jsonl", []
    for content in (chats.read_text(), chats.read_text().replace("nanochat", "another")):
        chats.write_text(content)
        with monkeypatch.context() as patch:
            kill_at(1, patch)
            with pytest.raises(Killed):
                run("sft", options)
        rows.append(len(list((tmp_path / "run").glob("rows-*"))))
    assert rows == [1, 2]


# -- recipes ---------------------------------------------------------------------------------------------------------


def test_recipes_with_words_of_yaml_train_what_they_say(tokenizer, chat_options, tmp_path):
    """Numbers in quotes, `no`, `off`, `false`, and one text where a list belongs, through the real stages."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        'pretrain:\n  data: microworld\n  depth: "1"\n  head_dim: 32\n  aspect_ratio: 32\n  sequence_length: 32\n'
        "  total_batch_size: 64\n  device_batch_size: 2\n  num_iterations: 2\n  eval_every: no\n  compile: false\n"
        "  matrix_lr: 2e-2\n  save_every: off\n  save_minutes: off\n"
        "sft:\n  tasks: ${chats}\n  num_iterations: 2\n  total_batch_size: 128\n  device_batch_size: 2\n"
    )
    run("pretrain", {"config": recipe, "set": "chats=x", "tokenizer": tokenizer, "output_dir": tmp_path / "base"})
    found = load_run(tmp_path / "base")["config"]
    assert found["depth"] == 1 and found["compile"] == "false" and found["matrix_lr"] == 0.02
    assert found["eval_every"] == found["save_every"] == 0 and not list((tmp_path / "base").glob("checkpoint-*"))
    assert "val_bpb" not in load_run(tmp_path / "base")["metrics"]
    options = {"config": recipe, "set": f"chats={chat_options['tasks']}", "model": chat_options["model"]}
    run("sft", options | {"output_dir": tmp_path / "sft"})
    assert load_run(tmp_path / "sft")["config"]["tasks"] == [chat_options["tasks"]]


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_a_damaged_record_of_the_start_is_named(tmp_path, content):
    (tmp_path / "checkpoint-1").mkdir()
    checkpoints.seal(tmp_path / "checkpoint-1")
    (tmp_path / stage.START_FILE).write_text(content)
    with pytest.raises(UserError, match=f"{stage.START_FILE} is damaged: delete .* and train it again"):
        stage.recorded_start(str(tmp_path))
