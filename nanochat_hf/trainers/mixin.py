"""`MuonAdamWMixin` gives any transformers `Trainer`, TRL's too, nanochat's optimizer, schedules and checkpoints."""

import functools
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import DistributedType
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from nanochat_hf.optim import MuonAdamW, Schedule, apply_schedule, build_optimizer
from nanochat_hf.settings import UserError
from nanochat_hf.trainers import checkpoints, fsdp

STAGING = "incomplete"  # a checkpoint in the making; what is left of one after a crash is overwritten


class MuonAdamWMixin:
    """Gives a `Trainer` (TRL's too) MuonAdamW, its schedules, and checkpoints that are whole and fit any world size.

    Put it before the trainer in the bases: `class MyTrainer(MuonAdamWMixin, SFTTrainer)`.

    The optimizer averages gradients itself, so with several processes the model stays unwrapped (no
    `DistributedDataParallel`, hence no second copy of the gradients and no all-reduce on top). Gradients are never
    clipped: upstream found clipping inactive, and local gradients are not what would have to be clipped. Where the
    launcher's config file asks for FSDP, the model is sharded (`nanochat_hf.trainers.fsdp`).

    Args:
        hyper: arguments of `build_optimizer`.
        schedule: learning rate factor, momentum and decay by step; default the modern one over all steps.
    """

    def __init__(self, *args, hyper: dict[str, Any] | None = None, schedule: Schedule | None = None, **kwargs):
        self.optimizer_hyper, self.schedule, self.log_norms = dict(hyper or {}), schedule, False
        self._staging: Path | None = None
        self._fsdp = fsdp.take_request()
        super().__init__(*args, **kwargs)
        if self.accelerator.distributed_type in (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
            prepare = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)  # do not wrap
            self.accelerator.prepare_model = (
                functools.partial(prepare, device_placement=False) if self._fsdp else prepare
            )

    # -- optimizer and schedule --------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = self.accelerator.unwrap_model(self.model if model is None else model)
            if dist.is_available() and dist.is_initialized():
                fsdp.broadcast(model)
                if self._fsdp:
                    fsdp.shard(model)
            self.optimizer = build_optimizer(model, **self.optimizer_hyper)
            self.optimizer.overlap_backward()
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        if self.schedule is None:
            self.schedule = Schedule(num_training_steps)
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.schedule.lr_factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    @property
    def muon_adamw(self) -> MuonAdamW:
        """The optimizer without accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        if self.accelerator.sync_gradients:  # the last micro-batch of the step
            apply_schedule(self.muon_adamw, self.schedule, self.state.global_step)
            logged = (self.state.global_step + 1) % max(1, int(self.state.logging_steps or 1)) == 0
            self.muon_adamw.measure_norms = self.log_norms and logged
            self.muon_adamw.arm()
        return super().training_step(model, inputs, num_items_in_batch)

    def _clip_grad_norm(self, model: nn.Module) -> None:
        return None

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> None:
        return None

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes aside, seals with checksums, renames, then deletes what is too old."""
        output = Path(self.args.output_dir)
        name = f"{checkpoints.PREFIX}{self.state.global_step}"
        staged = output / STAGING / name
        if self.args.should_save:
            shutil.rmtree(output / STAGING, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = output / STAGING
        try:
            staged.mkdir(parents=True, exist_ok=True)
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                (staged / "training_args.bin").unlink(missing_ok=True)  # a pickle, and run.json says it all
                checkpoints.seal(staged, output / name)
                checkpoints.rotate(output, self.args.save_total_limit)
        except Exception as error:
            if not _is_write_error(error):
                raise
            shutil.rmtree(output / STAGING, ignore_errors=True)
            before, _ = checkpoints.newest_intact(output)
            raise UserError(
                f"cannot write the checkpoint of step {self.state.global_step} to {output} ({error}); make room and "
                f"run the same command again, it goes on from {before or 'the beginning'}"
            ) from error
        finally:
            self._staging = None
        if self.args.should_save:
            shutil.rmtree(output / STAGING, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not fsdp.is_sharded(self.model):
            return super().save_model(output_dir, _internal_call)
        weights = fsdp.full_state_dict(self.model, keep=self.args.should_save)
        with fsdp.plain_class(self.model):
            if self.args.should_save:
                self._save(output_dir, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        checkpoints.save_optimizer(self.muon_adamw, output_dir, self.args.process_index, self.args.world_size)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Loads state saved by any number of processes. The schedule needs no state but the step."""
        if checkpoint is None:
            return
        checkpoints.load_optimizer(self.muon_adamw, checkpoint)
        step = self.state.global_step
        self.lr_scheduler.last_epoch, self.lr_scheduler._step_count = step, step + 1
        rates = [base * self.schedule.lr_factor(step) for base in self.lr_scheduler.base_lrs]
        for group, rate in zip(self.muon_adamw.param_groups, rates, strict=True):
            group["lr"] = rate
        self.lr_scheduler._last_lr = rates


def _is_write_error(error: Exception) -> bool:
    """Full disks and the like; PyTorch and safetensors wrap the operating system's error in their own."""
    words = ("No space left", "File too large", "Disk quota", "write failed", "PytorchStreamWriter")
    return isinstance(error, OSError) or any(word in str(error) for word in words)
