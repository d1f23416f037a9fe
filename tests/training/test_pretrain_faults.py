"""Real processes, several ranks, killed and resumed."""

import os
import shutil

import pytest
from ranks import STEPS, TOY, launch, launch_apart, result
from safetensors.torch import load_file

from nanochat_hf.trainers import checkpoints


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Six rows per step on one process, without a fault."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, result(launch(folder, 6, 1))


def test_three_ranks_and_accumulation_see_the_same_losses_and_two_or_one_go_on(plain, tmp_path):
    alone = launch(tmp_path / "accumulated", 3, 2)
    assert result(alone)["losses"] == pytest.approx(plain[1]["losses"], abs=1e-3)

    three = launch_apart(tmp_path / "ranks", 2, 1, "step=7:kill")
    assert [run.returncode for run in three] == [-9] * 3
    first = [line for run in (alone, *three) for line in run.stdout.splitlines() if line.startswith("first weights")]
    assert len(first) == 4 and len(set(first)) == 1  # those of the seed on any number of processes
    found = sorted(path.name for path in (tmp_path / "ranks").glob("checkpoint-*"))
    assert found == ["checkpoint-3", "checkpoint-6"]
    shutil.copytree(tmp_path / "ranks", tmp_path / "one")
    two = result(launch_apart(tmp_path / "ranks", 3, 1, ranks=2)[0])
    assert two["world"] == 2 and not two["wrapped"]
    assert two["losses"] == pytest.approx(plain[1]["losses"], abs=1e-3)
    one = result(launch(tmp_path / "one", 6, 1))
    assert one["world"] == 1 and one["losses"] == pytest.approx(plain[1]["losses"], abs=1e-3)


def fsdp_on_cpus(folder, ranks):
    """The config file for GPUs, turned to CPUs as its head says."""
    text = (TOY.parents[2] / "training" / "accelerate_fsdp.yaml").read_text()
    for old, new in (("use_cpu: false", "use_cpu: true"), ("num_processes: 8", f"num_processes: {ranks}")):
        assert old in text
        text = text.replace(old, new)
    path = folder / "fsdp.yaml"
    path.write_text(text.replace("mixed_precision: bf16", 'mixed_precision: "no"'))
    return path


def test_fsdp_on_three_ranks_sees_the_same_losses_and_one_plain_process_goes_on(plain, tmp_path):
    """Rows do not divide by three; the smear gate has a single one, so two ranks hold none of it."""
    output = tmp_path / "run"
    three = launch(output, 2, 1, "step=7:kill", config_file=fsdp_on_cpus(tmp_path, 3))
    assert three.returncode != 0 and three.stdout.count("sharded: True on (3,)") == 3, three.stderr[-3000:]
    assert (output / "checkpoint-6" / "modeling_nanochat_hf.py").exists()  # loads anywhere, as without FSDP
    one = launch(output, 6, 1)
    assert "sharded: False" in one.stdout
    assert result(one)["losses"] == pytest.approx(plain[1]["losses"], abs=1e-3)


def environment_of_launcher(*options):
    """The environment variables that `accelerate launch` sets with these options."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments = launch_command_parser().parse_args([*map(str, options), str(TOY)])
    found = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    return {name: value for name, value in found.items() if os.environ.get(name) != value}


def test_two_copies_of_a_sharded_model_see_the_same_losses_and_one_plain_process_goes_on(tmp_path):
    """HSDP on two "nodes" of two processes: the config file for FSDP and one option of the launcher.

    Gradients are reduced once per step, not with each micro-batch.
    """
    options = ["--config_file", fsdp_on_cpus(tmp_path, 4), "--parallelism_config_dp_replicate_size", 2]
    four = launch_apart(tmp_path / "run", 1, 3, ranks=4, env=environment_of_launcher(*options))
    assert [status for *_, status in four] == [0] * 4, four[0][1][-3000:]
    assert all("sharded: True on (2, 2)" in out for out, *_ in four)
    found, expected = result(four[0]), result(launch(tmp_path / "plain", 12, 1))
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-3)
    assert found["norms"] == pytest.approx(expected["norms"], rel=0.02)
    assert found["reductions"] == STEPS * 4  # three blocks and what is outside of them
    sizes = [path.stat().st_size for path in sorted((tmp_path / "run" / "checkpoint-6").glob("optimizer-*"))]
    assert len(sizes) == 4 and max(sizes[2:]) < 100 < min(sizes[:2])  # the second copy's state is not written again
    shutil.rmtree(tmp_path / "run" / "checkpoint-8")
    one = launch(tmp_path / "run", 12, 1)
    assert "resuming from" in one.stdout and result(one)["losses"] == pytest.approx(expected["losses"], abs=1e-3)


def test_after_sigkill_the_rest_is_bit_identical_even_from_the_checkpoint_before(plain, tmp_path):
    killed = launch(tmp_path, 6, 1, "step=7:kill")
    assert killed.returncode == -9
    weights = tmp_path / "checkpoint-6" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    resumed = launch(tmp_path, 6, 1)
    assert "model.safetensors is not what was written" in resumed.stderr
    assert result(resumed) == plain[1]


def test_a_checkpoint_that_a_crash_left_unfinished_is_not_used(plain, tmp_path):
    killed = launch(tmp_path, 6, 1, "step=6:kill_in_save")
    assert killed.returncode == -9
    unfinished = tmp_path / "checkpoint-6"
    assert (unfinished / "trainer_state.json").exists() and not (unfinished / "checksums.json").exists()
    resumed = launch(tmp_path, 6, 1)
    assert f"{unfinished} is not used: checksums.json is missing" in resumed.stderr
    assert result(resumed) == plain[1]


def test_sigterm_saves_and_exits_and_nan_stops_with_the_batch(tmp_path):
    ended = launch(tmp_path, 6, 1, "step=4:term")
    assert ended.returncode == 143
    assert (tmp_path / "checkpoint-4" / "checksums.json").exists()
    spoiled = launch(tmp_path, 1, 6, "step=5:nan")
    assert spoiled.returncode == 2 and "the loss is nan" in spoiled.stderr
    batch = load_file(tmp_path / "bad-batch-step5-rank0.safetensors")
    assert batch["input_ids"].shape == batch["shift_labels"].shape == (6, 32)  # all micro-batches of the step


def test_a_nan_on_one_rank_stops_all_three_with_the_same_sentence(tmp_path):
    ended = launch_apart(tmp_path, 2, 1, "step=5:nan@1", ranks=3)
    assert [status for *_, status in ended] == [2, 2, 2], ended[0][1][-2000:]
    said = {line for _, errors, _ in ended for line in errors.splitlines() if line.startswith("error:")}
    assert len(said) == 1 and "stopped at step 5: the loss is nan (process 1 of 3)" in said.pop()
    assert len(list(tmp_path.glob("bad-batch-step5-rank*.safetensors"))) == 3


@pytest.mark.parametrize(
    ("mishap", "status", "sentence"),
    [
        ("full_disk@0", 2, "cannot write the checkpoint of step 6 to {} ([Errno 28] No space left on device)"),
        ("bad_file@1", 2, "cannot read rows.parquet: it is damaged"),
        ("evaluation@2", 1, "ZeroDivisionError: no examples here"),
    ],
)
def test_an_error_on_one_rank_ends_all_three_with_the_same_sentence(mishap, status, sentence, tmp_path):
    """Within seconds, where gloo would wait for half an hour."""
    ended = launch_apart(tmp_path, 2, 1, f"step=5:{mishap}", ranks=3)
    assert [found for *_, found in ended] == [status] * 3, ended[0][1][-2000:]
    said = [[line for line in errors.splitlines() if line.startswith("error:")] for _, errors, _ in ended]
    assert said[0] == said[1] == said[2] and len(said[0]) == 1
    assert sentence.format(tmp_path) in said[0][0] and f"(process {mishap[-1]} of 3, on " in said[0][0]
    assert sum("Traceback" in errors for _, errors, _ in ended) == (status == 1)  # where it happened, no others
    assert checkpoints.newest_intact(tmp_path)[0] == tmp_path / "checkpoint-3"


def test_sigterm_on_one_rank_saves_and_ends_all_three(tmp_path):
    ended = launch_apart(tmp_path, 2, 1, "step=4:term@2", ranks=3)
    assert [status for *_, status in ended] == [143, 143, 143], ended[0][1][-2000:]
    assert (tmp_path / "checkpoint-4" / "checksums.json").exists()


def test_a_loss_spike_stops_with_the_batch_and_the_same_command_goes_on(plain, tmp_path):
    spoiled = launch(tmp_path, 6, 1, "step=5:spike")
    assert spoiled.returncode == 2 and "the loss rose to" in spoiled.stderr and "stopped by" not in spoiled.stderr
    batch = load_file(tmp_path / "bad-batch-step5-rank0.safetensors")
    assert batch["input_ids"].shape == batch["shift_labels"].shape == (6, 32)
    assert batch["input_ids"][:, 1:].equal(batch["shift_labels"][:, :-1])
    assert result(launch(tmp_path, 6, 1)) == plain[1]


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    launch(tmp_path, 6, 1, "step=4:kill")
    limited = launch(tmp_path, 6, 1, prefix=["bash", "-c", 'ulimit -f 40; trap "" XFSZ; exec "$@"', "-"])
    assert limited.returncode == 2 and "cannot write the checkpoint" in limited.stderr, limited.stderr[-2000:]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
