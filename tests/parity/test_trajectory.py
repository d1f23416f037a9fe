"""Whole training runs of upstream, step by step: model, optimizer and schedules together.

A recorded run can be met exactly only on a machine that rounds as the recording one did. At the start every layer is
the identity and a norm follows, so the gradients of the residual scalars are zero but for rounding, some 1e-10; AdamW
divides them by themselves plus 1e-10, and what comes out moves those scalars by up to their rate. Two threads instead
of one, or another processor, make a loss differ by 0.3 to 0.6 at step 5 of `trajectory_modern_1`, upstream's own code
by the very same amount as this one. So the test gives the first step's rounding noise back as one number, added to
all x0 scalars after that step; with it every later loss has to agree.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from nanochat_hf import conversion
from nanochat_hf.model import products_nanochat_hf
from nanochat_hf.optim import Schedule, apply_schedule, build_optimizer, set_learning_rates

GOLDENS = Path(os.environ.get("NANOCHAT_GOLDENS", Path(__file__).parents[1] / "goldens"))
TRAJECTORIES = sorted(GOLDENS.glob("trajectory_modern_*.safetensors"))
GROUP_RATES = ("unembedding_lr", "embedding_lr", "matrix_lr", "weight_decay", "scalar_lr")
LOSS_TOLERANCE = 1e-3
# Final weights, relative in norm: where the recording's noise is met of itself, and where it had to be found. One
# number is not all of that noise: on a Xeon (Emerald Rapids) backout's scalar differs by 0.085 at the end and other
# weights by 0.05 at most, while each loss agrees to 4e-4.
WEIGHT_TOLERANCE, WEIGHT_TOLERANCE_WITH_NOISE = 1e-3, 0.15


class Trajectory:
    """A recorded run, and the same run made again."""

    def __init__(self, path: Path):
        with safe_open(path, "pt") as file:
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata()
        self.hyper, self.config = json.loads(metadata["hyper"]), json.loads(metadata["config"])
        self.steps, self.rows, self.length = (int(metadata[name]) for name in ("steps", "batch", "seq"))
        self.model = None

    def part(self, prefix):
        return {
            name.removeprefix(prefix): tensor.clone()
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }

    def batch(self, step):
        start = step * self.rows * self.length
        stream = self.tensors["tokens"][start : start + self.rows * self.length + 1].long()
        return stream[:-1].view(self.rows, self.length), stream[1:].view(self.rows, self.length)

    def differences(self, steps, noise=0.0, **other_hyper):
        """Trains `steps` steps; returns each loss minus the recorded one and leaves the model in `self.model`."""
        hyper = self.hyper | other_hyper
        self.model = model = conversion.from_upstream(self.part("init."), self.config).train()
        optimizer = build_optimizer(model, **{name: hyper[name] for name in GROUP_RATES})
        names = ("warmup_steps", "warmdown_ratio", "final_lr_frac")
        schedule = Schedule(self.steps, **{name: hyper[name] for name in names if name in hyper})
        losses = []
        for step in range(steps):
            inputs, targets = self.batch(step)
            # As upstream, from all logits: the chunked loss is as exact, but rounds differently, which counts here.
            loss = model(input_ids=inputs, shift_labels=targets, return_logits=True).loss
            loss.backward()
            set_learning_rates(optimizer, schedule.lr_factor(step))
            apply_schedule(optimizer, schedule, step)
            optimizer.step()
            optimizer.zero_grad()
            if step == 0:
                with torch.no_grad():
                    model.model.x0_lambdas += noise
            losses.append(loss.item())
        return [loss - recorded for loss, recorded in zip(losses, self.tensors["losses"].tolist(), strict=False)]

    def find_noise(self, differences, **other_hyper):
        """The noise of the first step with which the losses agree, by secants on the first loss that does not."""
        largest = self.hyper["scalar_lr"] / self.hyper["warmup_steps"]  # what AdamW's first update moves a scalar by
        noise = 0.0
        for _ in range(3):  # a loss that agrees can uncover one further on that does not
            wrong = first_wrong(differences)
            if wrong is None:
                break
            before, after = (noise, differences[wrong]), None
            guess = noise - 0.08 * largest
            for _ in range(8):
                after = (guess, self.differences(wrong + 1, guess, **other_hyper)[wrong])
                if abs(after[1]) < LOSS_TOLERANCE / 20 or after[1] == before[1]:
                    break
                guess = after[0] - after[1] * (after[0] - before[0]) / (after[1] - before[1])
                guess, before = max(-largest, min(largest, guess)), after
            noise = after[0]
            differences = self.differences(len(differences), noise, **other_hyper)
        return differences


def first_wrong(differences):
    return next((step for step, one in enumerate(differences) if not abs(one) <= LOSS_TOLERANCE), None)


@pytest.fixture
def as_recorded(monkeypatch):
    """One thread, and all products by MKL: oneDNN is as exact, but rounds differently, which counts here."""
    monkeypatch.setattr(products_nanochat_hf, "onednn_is_better", lambda: False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_there_is_a_trajectory():
    assert TRAJECTORIES, f"no trajectory_modern_*.safetensors in {GOLDENS}"


@pytest.mark.parametrize("path", TRAJECTORIES, ids=lambda path: path.stem)
def test_trajectory(path, as_recorded):
    run = Trajectory(path)
    differences, tolerance = run.differences(run.steps), WEIGHT_TOLERANCE
    if first_wrong(differences) is not None:
        assert first_wrong(differences) > 2, f"losses differ before noise has had time to grow: {differences[:3]}"
        differences, tolerance = run.find_noise(differences), WEIGHT_TOLERANCE_WITH_NOISE
    assert first_wrong(differences) is None, f"losses minus recorded losses: {differences}"
    weights, _ = conversion.to_upstream(run.model)
    for name, expected in run.part("final.").items():
        found = weights[name][: expected.shape[0]].float()
        drift = (found - expected[: found.shape[0]]).norm() / expected.norm().clamp_min(1e-8)
        assert drift < tolerance, f"{name}: relative drift {drift:.2e}"


def test_noise_does_not_excuse_another_recipe(as_recorded):
    run, wrong = Trajectory(TRAJECTORIES[0]), {"embedding_lr": 0.31}
    assert first_wrong(run.find_noise(run.differences(14, **wrong), **wrong)) is not None
