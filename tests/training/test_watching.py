"""What a run shows of itself: speed, MFU, time left, rows for reporters; and that Python's collector keeps quiet."""

import gc
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.data.loader import make_batch
from nanochat_hf.optim import Schedule
from nanochat_hf.scaling.plan import device_facts, peak_flops
from nanochat_hf.settings import UserError
from nanochat_hf.trainers import callbacks, pretraining
from nanochat_hf.trainers.pretraining import NanochatTrainer, StepLoss


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GB200", 2500),
        ("NVIDIA B200", 2250),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10G", 70),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("Tesla T4", 65),
        ("Tesla V100-SXM2-16GB", 125),
        ("AMD Instinct MI300X", 1307),
    ],
)
def test_peaks_by_the_names_that_drivers_give(name, teraflops):
    assert peak_flops(name) == pytest.approx(teraflops * 1e12)


def test_an_unknown_device_has_no_peak():
    assert peak_flops("NVIDIA H1000 Ultra") == 0.0 and device_facts("Voodoo 2") is None


class Rows:
    """The same four rows of eight tokens, for ever."""

    sequence_length, batch_size = 8, 4

    def __iter__(self):
        return self

    def __next__(self):
        rows = torch.arange(36).reshape(4, 9) % 32
        return {"input_ids": rows[:, :-1], "shift_labels": rows[:, 1:]}


class Witness(TrainerCallback):
    """Notes what is logged and whether the collector may run."""

    def __init__(self):
        self.logs, self.collecting = [], []

    def on_step_begin(self, *args, **kwargs):
        self.collecting.append(gc.isenabled())

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def train(folder, peak=0.0, report_to="none", log_norms=False, extras=()):
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=6, per_device_train_batch_size=4, use_cpu=True, logging_steps=2,
        save_strategy="no", ignore_data_skip=True, disable_tqdm=True, remove_unused_columns=False, report_to=report_to,
    )  # fmt: skip
    torch.manual_seed(0)
    config = NanochatHFConfig.from_depth(1, vocab_size=64, head_dim=16, aspect_ratio=16, sequence_length=8)
    trainer = NanochatTrainer(
        model=NanochatHFForCausalLM(config),
        args=arguments,
        loader=Rows(),
        flops_per_token=5e6,
        peak_flops=peak,
        schedule=Schedule(6),
        callbacks=list(extras),
    )
    trainer.log_norms = log_norms
    trainer.train()
    return trainer


def test_speed_mfu_time_left_and_norms_are_in_the_history(tmp_path):
    witness = Witness()
    trainer = train(tmp_path, peak=1e12, log_norms=True, extras=[witness])
    rows = [row for row in trainer.history() if "loss" in row]
    assert [row["tokens"] for row in rows] == [64, 128, 192]
    for row in rows[1:]:
        assert row["mfu"] == pytest.approx(row["tokens_per_second"] * 5e6 / 1e12)
        left = (6 - row["step"]) * 32 / row["tokens_per_second"]
        assert row["eta_seconds"] == pytest.approx(left)
    groups = {name for name in rows[0] if "norm/" in name}
    assert {"grad_norm/head", "update_norm/embedding", "update_norm/matrix 64x16"} <= groups
    assert all(math.isfinite(rows[0][name]) for name in groups)
    assert all("mfu" not in row for row in train(tmp_path).history())  # no peak is known for a CPU


def test_the_collector_is_quiet_after_the_first_step_and_back_at_the_end(tmp_path):
    witness = Witness()
    assert gc.isenabled()
    train(tmp_path, extras=[callbacks.QuietGarbageCollector(), witness])
    assert witness.collecting == [True] + [False] * 5
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_a_reporter_receives_every_row(tmp_path, monkeypatch):
    """A stand-in under one of the names that transformers knows, so that no account or package is needed."""
    from transformers import integrations

    made = []

    class Reporter(Witness):
        def __init__(self):
            super().__init__()
            made.append(self)

    monkeypatch.setitem(integrations.INTEGRATION_TO_CALLBACK, "tensorboard", Reporter)
    train(tmp_path, report_to="tensorboard")
    assert [row["loss"] > 0 for row in made[0].logs if "loss" in row] == [True] * 3
    assert "tokens_per_second" in made[0].logs[1]


def test_the_guard_judges_whole_steps(tmp_path):
    """One row may be far harder than the mean, and a run of one row per micro-batch must not stop for it."""
    trainer = train(tmp_path)
    trainer.spike_threshold, trainer._mean_loss = 2.0, 4.0
    batch = make_batch(torch.arange(9)[None].numpy())
    trainer._check_loss(
        7, StepLoss([(torch.tensor(part), batch) for part in (1.0, 1.0, 1.0, 2.5)])
    )  # 4, 4, 4 and 10 nats
    with pytest.raises(UserError, match="stopped at step 8: the loss rose to 7.000 from a mean of 4.0"):
        trainer._check_loss(8, StepLoss([(torch.tensor(1.75), batch)] * 4))
    saved = load_file(tmp_path / "bad-batch-step8-rank0.safetensors")
    assert saved["shift_labels"].equal(torch.arange(1, 9).repeat(4, 1))


def test_nothing_is_saved_before_the_last_step_is_judged(tmp_path):
    """On a GPU the newest step has not been looked at when the run ends or a checkpoint is due."""
    trainer = train(tmp_path)
    batch = make_batch(torch.arange(9)[None].numpy())
    for save in (
        lambda: trainer._save_checkpoint(trainer.model, None),
        lambda: trainer.save_model(str(tmp_path / "last")),
    ):
        trainer._unchecked.append((6, StepLoss([(torch.tensor(torch.nan), batch)])))
        with pytest.raises(UserError, match="stopped at step 6: the loss is nan"):
            save()
    assert not (tmp_path / "last").exists() and not list(tmp_path.glob("checkpoint-*"))


def test_on_a_gpu_a_loss_is_read_one_step_later_and_all_before_saving(tmp_path, monkeypatch):
    """With a stand-in for the copy to pinned memory, whose event notes when it is waited for."""
    noted = []

    class Event:
        def __init__(self, number):
            self.number = number

        def synchronize(self):
            noted.append(f"read {self.number}")

    def copy_to_host(values):
        noted.append(f"copy {sum(note.startswith('copy') for note in noted)}")
        return values.clone(), Event(int(noted[-1].split()[1]))

    monkeypatch.setattr(pretraining, "copy_to_host", copy_to_host)
    trainer = train(tmp_path)
    expected = ["copy 0"] + [note for step in range(1, 6) for note in (f"copy {step}", f"read {step - 1}")]
    assert noted == expected
    trainer.save_model(str(tmp_path / "saved"))
    assert noted == [*expected, "read 5"]


def test_the_copy_of_a_loss_on_the_cpu_is_complete_at_once():
    host, event = pretraining.copy_to_host(torch.tensor([1.5]))
    assert host.tolist() == [1.5] and event is None
