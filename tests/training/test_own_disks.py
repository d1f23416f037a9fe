"""Machines without a shared file system: each has all files of the run on its own disk, and may lose them."""

import shutil

import pytest
import torch
from chat_toy import make_base, weights
from ranks import TOY, launch_apart, result, start_apart, toy

from nanochat_hf.settings import load_run
from nanochat_hf.settings.folder_lock import LOCK_FILE
from nanochat_hf.trainers import checkpoints

pytestmark = pytest.mark.timeout(1200)  # some seconds on a free machine, but a dozen processes on a busy one


def files(folder):
    """All files but the lock, which process 0 alone takes."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != LOCK_FILE
    )


def results(ended):
    assert [status for *_, status in ended] == [0] * len(ended), ended[-1][1][-3000:]
    return result(ended[0])


def test_pretraining_goes_on_after_one_machine_lost_its_disk(tmp_path):
    """Killed after a checkpoint; one machine is replaced by an empty one; the two change their numbers."""
    shared, first, second = tmp_path / "shared", tmp_path / "first", tmp_path / "second"
    expected = results(launch_apart(shared, 3, 1, ranks=2))
    killed = start_apart(toy("run", 3, 1, "step=7:kill"), [first, second])
    assert [status for *_, status in killed] == [-9, -9], killed[0][1][-3000:]
    for machine in (first, second):
        assert files(machine / "run" / "checkpoint-6") == files(shared / "checkpoint-6")
        assert checkpoints.damage_in(machine / "run" / "checkpoint-6") is None
        assert not list((machine / "run").glob(".seen-*"))
    shutil.rmtree(first / "run")
    ended = start_apart(toy("run", 3, 1), [second, first])
    assert results(ended) == expected
    assert "resuming from run/checkpoint-6" in ended[0][0]
    assert "run/checkpoint-6 is not on the disk of" in ended[1][0] and "another machine sends it" in ended[1][0]
    for machine in (first, second):
        assert [path.name for path in checkpoints.checkpoints(machine / "run")] == ["checkpoint-8", "checkpoint-6"]
        for name in files(shared / "checkpoint-8"):
            if name.endswith(".safetensors") or name.startswith("random"):
                made = (machine / "run" / "checkpoint-8" / name).read_bytes()
                assert made == (shared / "checkpoint-8" / name).read_bytes(), name


def test_an_error_while_one_machine_saves_keeps_the_checkpoint_before(tmp_path):
    machines = [tmp_path / "first", tmp_path / "second"]
    ended = start_apart(toy("run", 3, 1, "step=5:full_disk@1"), machines)
    assert [status for *_, status in ended] == [2, 2], ended[0][1][-3000:]
    assert all("cannot write the checkpoint of step 6 to run" in errors for _, errors, _ in ended)
    expected = results(launch_apart(tmp_path / "shared", 3, 1, ranks=2))
    ended = start_apart(toy("run", 3, 1), machines)
    assert "resuming from run/checkpoint-3" in ended[0][0] and results(ended) == expected


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """All chat stages, once per test session: importing TRL takes 20 s."""
    folder = tmp_path_factory.mktemp("stages")
    base = make_base(folder / "base", sequence_length=64)
    command = [TOY.with_name("own_disks_stages.py"), base, folder / "shared"]
    ended = start_apart(command, [folder / "first", folder / "second"], imports="nanochat_hf.trainers.grpo")
    assert [status for *_, status in ended] == [0, 0], ended[1][1][-3000:]
    return folder, [out for out, *_ in ended]


@pytest.mark.parametrize("stage", ["midtrain", "sft", "dpo", "rl"])
def test_chat_stages_resume_and_give_the_weights_of_a_shared_folder(stage, stages):
    folder, said = stages
    expected = weights(folder / "shared" / stage)
    for machine in ("first", "second"):
        found = weights(folder / machine / stage)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
        assert load_run(folder / machine / stage)["metrics"] == load_run(folder / "shared" / stage)["metrics"]
        assert not list((folder / machine / stage).glob("rows-*"))
    assert files(folder / "first" / stage) == files(folder / "second" / stage)
    assert f"{stage}/checkpoint-1 is not on the disk of" in said[1]
    rows = [line for out in said for line in out.splitlines() if line.startswith(f"{stage} [")]
    assert len(rows) == 2 and rows[0] == rows[1] and ("rows-" in rows[0]) == (stage != "rl")


def test_machines_with_other_tokenizers_are_refused(stages):
    for out in stages[1]:
        assert "refused: process 1 of 2 has another tokenizer than process 0" in out
