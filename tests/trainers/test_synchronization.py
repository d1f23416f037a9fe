"""A training step never waits for the GPU: nothing on the host asks for a value that the device computes.

The meta device stands in for the GPU. It has no values, so every question for one raises an error: `item`, `tolist`,
`if tensor`, copies to the CPU. What is left is the one copy that is meant, which `copy_to_host` makes.
"""

from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from transformers import TrainerCallback

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.data.loader import make_batch
from nanochat_hf.trainers import pretraining, stage
from nanochat_hf.trainers.pretraining import NanochatTrainer
from nanochat_hf.trainers.pretraining_setup import PretrainingArguments

STEPS, META = 4, torch.device("meta")


class OnMeta(PretrainingArguments):
    @property
    def device(self):
        return META if super().device else None  # asked for the CPU, which sets up what else belongs to it


class Rows:
    sequence_length = 32

    def __iter__(self):
        while True:
            yield make_batch(torch.randint(0, 64, (2, 33)).numpy())


class Steps(TrainerCallback):
    def __init__(self):
        self.done = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.done = state.global_step


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """A trainer on two micro-batches per step with all that the script gives it; `log_every` is an argument."""
    from accelerate.state import AcceleratorState

    waits, begun = [], []  # (step that is waited for, steps begun by then); the steps

    def copy_to_host(values):
        assert values.device == META
        step = len(begun)
        begun.append(step)
        return torch.ones(values.shape), SimpleNamespace(synchronize=lambda: waits.append((step, len(begun))))

    monkeypatch.setattr(pretraining, "copy_to_host", copy_to_host)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # torch's own raises for meta

    def make(log_every, **changes):
        options = stage.base_arguments(str(tmp_path), save_every=0, save_total_limit=1, seed=1, dtype="float32")
        arguments = OnMeta(
            **options, max_steps=STEPS, logging_steps=log_every, logging_nan_inf_filter=False, ignore_data_skip=True,
            gradient_accumulation_steps=2,
        )  # fmt: skip
        assert arguments.device == META
        PartialState._shared_state["device"] = META  # until the state is reset below
        config = NanochatHFConfig.from_depth(2, vocab_size=64, head_dim=16, aspect_ratio=16, sequence_length=32)
        with META:
            model = NanochatHFForCausalLM(config)
        made = NanochatTrainer(model=model, args=arguments, loader=Rows(), spike_threshold=2.0)
        stage.add_callbacks(made, 10.0)
        made.remove_callback(made.final_weights)  # which waits, after the last step
        made.steps, made.waits = Steps(), waits
        made.add_callback(made.steps)
        return made

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)


def test_no_step_waits_and_a_loss_is_read_one_step_later(trainer):
    found = trainer(log_every=1000)
    with pytest.raises(RuntimeError, match="meta tensors"):  # the mean loss of the run, which Trainer reads at the end
        found.train()
    assert found.steps.done == STEPS
    assert found.waits == [(step, step + 2) for step in range(STEPS - 1)]


def test_the_stand_in_notices_a_question_for_a_value(trainer):
    found = trainer(log_every=1)
    with pytest.raises(RuntimeError, match="meta tensors"):
        found.train()
    assert found.steps.done < STEPS
