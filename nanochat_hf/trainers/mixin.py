"""`MuonAdamWMixin` gives any transformers `Trainer`, TRL's too, nanochat's optimizer, schedules and checkpoints."""

import copy
import functools
import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate import DistributedType
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from nanochat_hf.generation import allow_tf32
from nanochat_hf.optim import MuonAdamW, Schedule, apply_schedule, build_optimizer
from nanochat_hf.progress import quiet_transformers
from nanochat_hf.settings import UserError
from nanochat_hf.trainers import checkpoints, compilation, disks, fsdp

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class MuonAdamWMixin(_Base):
    """Gives a `Trainer` (TRL's too) MuonAdamW, its schedules, and checkpoints that fit any number of processes.

    Put it before the trainer in the bases: `class MyTrainer(MuonAdamWMixin, SFTTrainer)`.

    The optimizer averages gradients itself. So with several processes the model stays unwrapped: no
    `DistributedDataParallel`, no second copy of the gradients, no second all-reduce. Gradients are never clipped:
    upstream found clipping inactive. Where the launcher's config file asks for FSDP, the model is sharded
    (`nanochat_hf.trainers.fsdp`). docs/private-apis.md lists what this needs of the libraries beyond their public
    interface.

    Args:
        hyper: arguments of `build_optimizer`.
        schedule: learning rate factor, momentum and weight decay by step; default the modern one over all steps.
        compile_layers: whether training steps compile the model's blocks and its loss.

    Raises:
        UserError: transformers would wrap the model in `DataParallel`, because the process sees several GPUs. The
            arguments of our stages do not let it ([`OneDevice`][nanochat_hf.trainers.stage.OneDevice]).
    """

    optimizer: Any  # MuonAdamW, and accelerate's wrapper around it once training has begun
    control: Any
    schedule: Any  # a Schedule; None until training begins, where none is given

    def __init__(
        self,
        *args,
        hyper: dict[str, Any] | None = None,
        schedule: Schedule | None = None,
        compile_layers: bool = False,
        **kwargs,
    ):
        self.optimizer_hyper, self.schedule, self.log_norms = dict(hyper or {}), schedule, False
        self.uses_fsdp = fsdp.requested()
        quiet_transformers()
        with fsdp.hidden_from_accelerate():
            super().__init__(*args, **kwargs)
        if self.uses_fsdp and hasattr(self.model, "peft_config"):
            raise UserError("LoRA does not work with FSDP here; leave --lora_rank out, or launch without FSDP")
        if self.args.n_gpu > 1:
            raise UserError(
                f"this process would train on {self.args.n_gpu} GPUs with DataParallel, which MuonAdamW does not "
                "support; start one process per GPU with `accelerate launch`, or set CUDA_VISIBLE_DEVICES=0"
            )
        if self.args.tf32 is not False:
            allow_tf32(self.args.device)  # not before the arguments exist: they set the same through another interface
        self.compiles_layers = compile_layers
        self.compiled: AbstractContextManager = nullcontext()  # in which training steps run
        if compile_layers:
            self.compiled = compilation.compiled_layers(self.model)
        self.checkpointing = Checkpointing(self, keep=self.args.save_total_limit)
        self.add_callback(self.checkpointing)
        # Trainer writes the model and its own state; `Checkpointing` writes the rest and deletes old checkpoints.
        self.args.save_only_model, self.args.save_total_limit = True, None

    def create_accelerator_and_postprocess(self) -> None:
        """Leaves out of accelerate what the optimizer does itself: wrapping in DDP, and norms of local gradients."""
        super().create_accelerator_and_postprocess()
        accelerator: Any = self.accelerator
        accelerator.clip_grad_norm_ = lambda *_, **__: None
        if accelerator.distributed_type in (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
            placement = {"device_placement": False} if self.uses_fsdp else {}
            accelerator.prepare_model = functools.partial(accelerator.prepare_model, evaluation_mode=True, **placement)

    # -- optimizer and schedule --------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = self.accelerator.unwrap_model(self.model if model is None else model)
            if dist.is_available() and dist.is_initialized():
                fsdp.broadcast(model)
                if self.uses_fsdp:
                    mesh = fsdp.requested_mesh(self.args.device.type, self.args.world_size)
                    fsdp.shard(model, bf16=self.args.bf16, mesh=mesh)
            self.optimizer = build_optimizer(model, **self.optimizer_hyper)
            self.optimizer.overlap_backward()
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """The learning rates' schedule, at the step that a resumed run has reached. Its only state is the step."""
        if self.schedule is None:
            self.schedule = Schedule(num_training_steps)
        step = self.state.global_step
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.schedule.lr_factor, last_epoch=step - 1)
        return self.lr_scheduler

    @property
    def muon_adamw(self) -> MuonAdamW:
        """The optimizer without accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch. Before the last one of a step it sets the step's schedule and starts the reductions."""
        fsdp.reduce_gradients(self.model, now=self.accelerator.sync_gradients)
        if self.accelerator.sync_gradients:  # the last micro-batch of the step
            apply_schedule(self.muon_adamw, self.schedule, self.state.global_step)
            step = self.state.global_step + 1
            logged = step % max(1, int(self.state.logging_steps or 1)) == 0 or step >= self.state.max_steps
            self.muon_adamw.measure_norms = self.log_norms and logged
            self.muon_adamw.arm()
        with self.compiled:
            return super().training_step(model, inputs, num_items_in_batch)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> Any:
        """Trainer's `train`. True resumes from the newest intact checkpoint in the output folder, if there is one.

        Raises:
            UserError: a checkpoint could not be written.
        """
        self.args.save_on_each_node = not disks.is_shared(self.args.output_dir)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = checkpoints.to_resume(self.args.output_dir, writes=self.args.should_save)
        self.checkpointing.resume_from = resume_from_checkpoint or None
        if self.is_world_process_zero():
            compiled = self.compiles_layers or self.args.torch_compile
            print(compilation.describe_attention(self.model, self.args.device, self.args.bf16, compiled), flush=True)
        try:
            return super().train(resume_from_checkpoint or None, *args, **kwargs)
        except Exception as error:
            if self.checkpointing.unfinished is None or not checkpoints.is_write_error(error):
                raise
            raise self.checkpointing.discard(error) from error

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes weights, configuration and tokenizer, for `from_pretrained`; every process has to call it.

        LoRA's matrices are merged into the weights, and are also written on their own, to `adapter/`. Trainer calls it
        first when it writes a checkpoint; then the state of the training goes there too.
        """
        folder = Path(output_dir or self.args.output_dir)
        is_checkpoint = _internal_call and output_dir is not None
        if is_checkpoint:
            self.checkpointing.begin(folder)
        model: Any = self.accelerator.unwrap_model(self.model)
        weights = fsdp.full_state_dict(model, keep=self.args.should_save)
        if self.args.should_save:
            if hasattr(model, "peft_config") and is_checkpoint:
                model.save_pretrained(folder)  # LoRA's matrices only
            elif hasattr(model, "peft_config"):
                model.save_pretrained(folder / "adapter")
                write_model(copy.deepcopy(model).merge_and_unload(), folder)
            else:
                write_model(fsdp.unsharded(model), folder, state_dict=weights)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
        if is_checkpoint:
            self.save_training_state(folder)

    def save_training_state(self, folder: Path) -> None:
        """Writes what resuming needs besides the weights; every process has to call it."""
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints.save_optimizer(self.muon_adamw, folder, self.args.process_index, self.args.world_size)
        checkpoints.save_random_state(folder, self.args.process_index)

    def load_training_state(self, folder: str) -> None:
        """Loads the optimizer's state as any number of processes wrote it. The random state follows at step begin."""
        checkpoints.load_optimizer(self.muon_adamw, folder)

    def history(self) -> list[dict[str, float]]:
        """What was logged, numbers only, as `run.json` keeps it."""
        return [
            {name: value for name, value in row.items() if isinstance(value, int | float)}
            for row in self.state.log_history
        ]


def write_model(model: Any, folder: Path, **options: Any) -> None:
    """`save_pretrained` by this process, whichever it is. transformers lets only the first of all processes write."""
    model.should_save_on_this_rank = lambda is_main_process: is_main_process
    try:
        model.save_pretrained(folder, **options)
    finally:
        del model.should_save_on_this_rank


class Checkpointing(TrainerCallback):
    """Completes Trainer's checkpoints and loads them again.

    Args:
        trainer: whose `save_training_state` and `load_training_state` are used.
        keep: how many checkpoints are kept; None keeps all.
    """

    def __init__(self, trainer: MuonAdamWMixin, keep: int | None):
        self.trainer, self.keep = trainer, keep
        self.resume_from: str | None = None
        self.unfinished: Path | None = None  # the checkpoint that is being written
        self.paused = 0.0  # seconds spent on writing since this was last read
        self._started = 0.0

    def begin(self, folder: Path) -> None:
        """Clears the folder of what an interrupted write or an older run left there."""
        self._started, self.unfinished = time.perf_counter(), folder
        if self.trainer.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
        self.trainer.accelerator.wait_for_everyone()

    def discard(self, error: Exception) -> UserError:
        """Deletes the checkpoint that could not be written; returns the error to raise."""
        output, step = Path(self.trainer.args.output_dir), self.trainer.state.global_step
        if self.unfinished is not None:
            shutil.rmtree(self.unfinished, ignore_errors=True)
            self.unfinished = None
        before, _ = checkpoints.newest_intact(output)
        return UserError(
            f"cannot write the checkpoint of step {step} to {output} ({error}); make room and run the same command "
            f"again, which resumes from {before or 'the beginning'}"
        )

    def on_train_begin(self, args, state, control, **kwargs):
        if self.resume_from:
            # Trainer takes the intervals of logging, measuring and saving from the checkpoint; the command's count.
            state.compute_steps(args, state.max_steps)
            self.trainer.load_training_state(self.resume_from)

    def on_step_begin(self, args, state, control, **kwargs):
        if self.resume_from:  # not earlier: to make the data loader's iterator takes random numbers
            checkpoints.load_random_state(self.resume_from, args.process_index)
            self.resume_from = None

    def on_save(self, args, state, control, **kwargs):
        self.trainer.accelerator.wait_for_everyone()
        if self.unfinished is not None:
            disks.spread(self.unfinished, writes=args.should_save)
        if args.should_save and self.unfinished is not None:
            checkpoints.seal(self.unfinished)
            checkpoints.rotate(args.output_dir, self.keep, newest=self.unfinished)
        self.unfinished = None
        self.trainer.accelerator.wait_for_everyone()
        self.paused += time.perf_counter() - self._started
