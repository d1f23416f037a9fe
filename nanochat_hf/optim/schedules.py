"""Learning rate, momentum and weight decay as pure functions of the step. Step 0 is the first update.

Modern values: upstream, July 2026. Classic values: upstream, October 2025.
"""

import math
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer


@dataclass(frozen=True)
class Schedule:
    """Learning rate, momentum and weight decay over a run; every method takes the number of an update, from 0.

    Attributes:
        num_iterations: optimizer steps of the run.
        warmup_steps: updates over which the learning rate rises linearly; the first one has 1 / warmup_steps.
        warmdown_ratio: last part of the run, over which the learning rate falls linearly.
        final_lr_frac: learning rate at the end of the run, as a fraction of the peak.
        momentum_start, momentum_peak, momentum_warmup_steps: Muon's momentum rises linearly over so many updates.
        momentum_final: Muon's momentum at the end of the warmdown; equal to the peak it does not fall.
        decay_to_zero: whether Muon's weight decay follows half a cosine to zero; else it is constant.
    """

    num_iterations: int
    warmup_steps: int = 40
    warmdown_ratio: float = 0.65
    final_lr_frac: float = 0.05
    momentum_start: float = 0.85
    momentum_peak: float = 0.97
    momentum_warmup_steps: int = 400
    momentum_final: float = 0.90
    decay_to_zero: bool = True

    @classmethod
    def classic(cls, num_iterations: int, **changes: Any) -> "Schedule":
        """October 2025: no warmup, warmdown to zero over the last fifth, momentum 0.85 → 0.95 in 300 updates."""
        values = {"warmup_steps": 0, "warmdown_ratio": 0.2, "final_lr_frac": 0.0}
        values |= {"momentum_peak": 0.95, "momentum_final": 0.95, "momentum_warmup_steps": 300, "decay_to_zero": False}
        return cls(num_iterations, **(values | changes))

    @classmethod
    def of(cls, preset: str, num_iterations: int, **changes: Any) -> "Schedule":
        """The schedule of a preset, "modern" or "classic"; a change that is None leaves the preset's value."""
        changes = {name: value for name, value in changes.items() if value is not None}
        return (cls.classic if preset == "classic" else cls)(num_iterations, **changes)

    @property
    def warmdown_steps(self) -> int:
        """Updates of the warmdown."""
        return round(self.warmdown_ratio * self.num_iterations)

    @property
    def warmdown_start(self) -> int:
        """Number of the last update at the peak."""
        return self.num_iterations - self.warmdown_steps

    def lr_factor(self, step: int) -> float:
        """Factor on every group's peak learning rate."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if step <= self.warmdown_start:
            return 1.0
        left = max(0.0, (self.num_iterations - step) / self.warmdown_steps)
        return left + (1 - left) * self.final_lr_frac

    def momentum(self, step: int) -> float:
        """Muon's momentum; where warmup and warmdown overlap, the warmup counts."""
        if step < self.momentum_warmup_steps:
            return _mix(self.momentum_start, self.momentum_peak, step / self.momentum_warmup_steps)
        if step >= self.warmdown_start and self.warmdown_steps > 0:
            progress = min(1.0, (step - self.warmdown_start) / self.warmdown_steps)
            return _mix(self.momentum_peak, self.momentum_final, progress)
        return self.momentum_peak

    def decay_factor(self, step: int) -> float:
        """Factor on Muon's weight decay."""
        if not self.decay_to_zero:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(step, self.num_iterations) / self.num_iterations))


def _mix(start: float, end: float, fraction: float) -> float:
    return start * (1 - fraction) + end * fraction


def apply_schedule(optimizer: Optimizer, schedule: Schedule, step: int) -> None:
    """Sets momentum and weight decay of the Muon groups for update number `step`.

    Learning rates are not touched: Trainer sets them by its own scheduler, from `Schedule.lr_factor`.
    """
    for group in optimizer.param_groups:
        if group.get("kind") == "muon":
            group["momentum"] = schedule.momentum(step)
            group["weight_decay"] = group["initial_weight_decay"] * schedule.decay_factor(step)


def set_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Sets every group's learning rate to its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
