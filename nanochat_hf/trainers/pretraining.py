"""`NanochatTrainer` pretrains on packed rows: transformers' `Trainer` with nanochat's data, optimizer and checks.

The loop is transformers' own (`Trainer._run_epoch` in transformers/trainer.py); it calls our functions. One training
step, in order (paths without a library's name are below nanochat_hf/):

1. Rows. A thread of data/loader.py:PackedLoader tokenizes documents and packs them into rows (data/packing.py).
   Trainer takes the step's micro-batches from it with `get_batch_samples`.
2. Micro-batches. Trainer calls trainers/pretraining.py:NanochatTrainer.training_step once per micro-batch. Through
   trainers/mixin.py:MuonAdamWMixin.training_step it reaches `Trainer.training_step`. That moves the batch to the
   device, calls trainers/pretraining.py:NanochatTrainer.compute_loss, divides the loss by the number of micro-batches
   and runs the backward pass. The forward pass is model/modeling_nanochat_hf.py, the loss model/loss_nanochat_hf.py.
3. Schedule. Before the last micro-batch, MuonAdamWMixin.training_step sets momentum and weight decay
   (optim/schedules.py:apply_schedule). The learning rates were set after the step before: Trainer calls the scheduler
   that trainers/mixin.py:MuonAdamWMixin.create_scheduler made.
4. Reductions. During the last backward pass, optim/muon_adamw.py:MuonAdamW starts averaging gradients over the
   processes, one bucket at a time (optim/buckets.py); `arm` allows it.
5. Checks. trainers/pretraining.py:NanochatTrainer._check_losses stops the run at a loss that is not finite or far
   above its mean. It judges the mean over the processes, so all of them stop at the same step. It is called at the end
   of training_step, before the optimizer's step (on a GPU one step later).
6. Muon and AdamW. Trainer calls `optimizer.step`: optim/muon_adamw.py:MuonAdamW.step waits for the reductions,
   updates each bucket with the kernels in optim/kernels.py and sends the new weights to all processes. Then Trainer
   advances the scheduler and clears the gradients.
7. Log, evaluation, checkpoint. Trainer calls the callbacks (trainers/callbacks.py), then as the intervals say
   trainers/pretraining.py:NanochatTrainer.log and `evaluate`, and MuonAdamWMixin.save_model for a checkpoint, which
   trainers/mixin.py:Checkpointing completes.

trainers/pretraining_setup.py builds the model and this trainer from the stage's settings.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from transformers import PrinterCallback, Trainer

from nanochat_hf.settings import UserError
from nanochat_hf.trainers import checkpoints, fp8, fsdp
from nanochat_hf.trainers.mixin import MuonAdamWMixin


def copy_to_host(values: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Copies a tensor to the CPU without waiting for its GPU.

    Returns:
        The copy, and an event after which it is complete; None: it is complete already.
    """
    if values.device.type != "cuda":
        return values.cpu(), None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event


class StepLoss:
    """The loss of one training step on every process.

    Summing, exchanging and copying are only started here. So a GPU's queue stays filled, if `read` follows one step
    later. Every process has to make it.

    Args:
        micro_batches: (loss, rows) of this process; each loss is divided by their number.
    """

    def __init__(self, micro_batches: list[tuple[torch.Tensor, dict]]):
        self.micro_batches = micro_batches
        losses = torch.stack([loss for loss, _ in micro_batches]).sum().view(1)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            own, losses = losses, losses.new_empty(dist.get_world_size())
            dist.all_gather_into_tensor(losses, own)
        self._host, self._event = copy_to_host(losses)

    @property
    def is_ready(self) -> bool:
        """Whether it was computed on a CPU, so that reading it never waits."""
        return self._event is None

    def read(self) -> list[float]:
        """The loss of each process in nats per token, the same list on all of them."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.tolist()


class OnDevice:
    """Iterates over a loader and copies its batches to a GPU without waiting: they lie in pinned memory.

    Only what the model takes is copied. Without `labels`, Trainer does not count tokens, which would wait for the GPU.

    Args:
        loader: an endless iterator of batches.
        device: where they go.
        batches: of the whole run. Without a length, Trainer would begin a second epoch where a run has all its steps.
    """

    def __init__(self, loader: Any, device: torch.device, batches: int):
        self.loader, self.device, self.batches = loader, device, batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self.loader:
            yield {name: batch[name].to(self.device, non_blocking=True) for name in ("input_ids", "shift_labels")}


class NanochatTrainer(MuonAdamWMixin, Trainer):
    """Pretraining on packed rows.

    Args:
        loader: an endless iterator of batches with `state_dict` and `load_state_dict` (`PackedLoader`). A batch holds
            `input_ids` and `shift_labels`, int64 [rows, tokens].
        validation: batches to measure bits per byte on, an iterable that can be read again; None: no evaluation.
        validation_documents: the same, of whole documents; None: not measured.
        byte_lengths: bytes of each token of the vocabulary, [tokens].
        flops_per_token: of forward and backward pass, for MFU.
        peak_flops: per second, of one device, in the dtype of the matrix products; 0: unknown, MFU is not logged.
        spike_threshold: nats by which a loss may exceed the running mean before the run is stopped; 0: never.
    """

    def __init__(
        self,
        *args,
        loader: Any,
        validation: Any = None,
        validation_documents: Any = None,
        byte_lengths: Any = None,
        flops_per_token: float = 0.0,
        peak_flops: float = 0.0,
        spike_threshold: float = 0.0,
        **kwargs,
    ):
        self.loader, self.validation, self.validation_documents = loader, validation, validation_documents
        self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
        self.spike_threshold = spike_threshold
        super().__init__(*args, eval_dataset=validation, **kwargs)  # Trainer insists on it; `evaluate` is our own
        self.remove_callback(PrinterCallback)  # `callbacks.TrainingProgress` shows the same on one line
        if byte_lengths is not None:  # the vocabulary is padded to a multiple of 64: the added rows have no bytes
            lengths = torch.as_tensor(byte_lengths)
            byte_lengths = lengths.new_zeros(self.model.config.vocab_size)
            byte_lengths[: len(lengths)] = lengths
        self.byte_lengths = byte_lengths
        self.loss_is_scaled_for_ga = False  # the mean of the micro-batches' means is exact where rows are full
        self._mean_loss: float | None = None
        self._micro_batches: list[tuple[torch.Tensor, dict]] = []  # of the current step
        self._unchecked: deque[tuple[int, StepLoss]] = deque()
        self._clock: tuple[int, float] | None = None
        self._paused = 0.0

    def get_train_dataloader(self) -> Any:
        return OnDevice(self.loader, self.args.device, self.args.max_steps * self.args.gradient_accumulation_steps)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean loss in nats per token over a micro-batch."""
        outputs = model(input_ids=inputs["input_ids"], shift_labels=inputs["shift_labels"], use_cache=False)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        return self.flops_per_token * inputs["input_ids"].numel()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_batches.append((loss, inputs))
        if self.accelerator.sync_gradients:
            step_loss = StepLoss(self._micro_batches)
            self._unchecked.append((self.state.global_step, step_loss))
            self._micro_batches = []
            # On a GPU the newest losses are still being computed. To read them would wait for them.
            self._check_losses(unchecked=0 if step_loss.is_ready else 1)
        return loss

    def _check_losses(self, unchecked: int = 0) -> None:
        """Checks the losses of all steps but the newest `unchecked`. Before anything is saved, all are checked."""
        while len(self._unchecked) > unchecked:
            self._check_loss(*self._unchecked.popleft())

    def _check_loss(self, step: int, step_loss: StepLoss) -> None:
        """Stops at a loss that is not finite or far above the running mean, and writes the step's rows to a file.

        The mean over the step's micro-batches and over the processes counts. A single row may be two nats harder than
        the mean. And a process that stopped alone would leave the others waiting for it.

        Raises:
            UserError: names the step, the loss and the file; on every process.
        """
        losses = step_loss.read()
        value = sum(losses) / len(losses)
        mean = value if self._mean_loss is None else self._mean_loss
        spike = self.spike_threshold > 0 and value - mean > self.spike_threshold
        if not math.isfinite(value) or spike:
            files = self._save_rows(step, step_loss.micro_batches, len(losses))
            what = f"rose to {value:.3f} from a mean of {mean:.3f}" if math.isfinite(value) else f"is {value}"
            bad = [str(rank) for rank, loss in enumerate(losses) if not math.isfinite(loss)]
            if bad and len(losses) > 1:
                what += f" (process {', '.join(bad)} of {len(losses)})"
            raise UserError(
                f"stopped at step {step}: the loss {what}; the batch is in {files}; run the same command again to "
                "resume from the last checkpoint; if it happens again, lower the learning rate or raise "
                "--spike_threshold"
            )
        self._mean_loss = 0.95 * mean + 0.05 * value

    def _save_rows(self, step: int, micro_batches: list[tuple[torch.Tensor, dict]], world_size: int) -> Path:
        """Writes this process's rows of a step; returns the path, with `*` for the rank if there are several."""
        folder = Path(self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        names = micro_batches[0][1]
        rows = {name: torch.cat([inputs[name].cpu() for _, inputs in micro_batches]) for name in names}
        path = folder / f"bad-batch-step{step}-rank{self.args.process_index}.safetensors"
        save_file(rows, path)
        return path if world_size == 1 else folder / f"bad-batch-step{step}-rank*.safetensors"

    # -- measuring -----------------------------------------------------------------------------------------------

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Bits per byte on packed rows (`val_bpb`, upstream's figure) and on whole documents (`document_bpb`).

        The time it takes does not count as training time.
        """
        from nanochat_hf.evals.bits_per_byte import packed_bits_per_byte

        started = time.perf_counter()
        model = self.model_wrapped if self.is_in_train else self.model
        model.eval()
        with self.compute_loss_context_manager(), fp8.full_precision(self.model), fsdp.gathered_weights(self.model):
            metrics = {"val_bpb": packed_bits_per_byte(model, self.validation, self.byte_lengths)}
            if self.validation_documents is not None:
                metrics["document_bpb"] = packed_bits_per_byte(model, self.validation_documents, self.byte_lengths)
        model.train()
        self._paused += time.perf_counter() - started
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @property
    def tokens_per_step(self) -> int:
        rows = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return rows * self.loader.sequence_length

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds tokens seen, tokens per second, MFU and the seconds left to a row of training losses."""
        if "loss" in logs:
            now, step = time.perf_counter(), self.state.global_step
            for callback in self.callback_handler.callbacks:
                self._paused, callback.paused = self._paused + getattr(callback, "paused", 0.0), 0.0
            logs["tokens"] = step * self.tokens_per_step
            if self._clock is not None and step > self._clock[0]:
                seconds = max(1e-9, now - self._clock[1] - self._paused) / (step - self._clock[0])
                speed = self.tokens_per_step / seconds
                logs["tokens_per_second"] = speed
                logs["eta_seconds"] = seconds * (self.state.max_steps - step)
                if self.peak_flops:
                    logs["mfu"] = speed * self.flops_per_token / (self.peak_flops * self.args.world_size)
            self._clock, self._paused = (step, now), 0.0
            logs |= self.muon_adamw.norms
        super().log(logs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self._check_losses()
        super().save_model(output_dir, _internal_call)

    def save_training_state(self, folder: Path) -> None:
        super().save_training_state(folder)
        checkpoints.save_loader(self.loader.state_dict(), folder, self.args.process_index)

    def load_training_state(self, folder: str) -> None:
        super().load_training_state(folder)
        self.loader.load_state_dict(checkpoints.load_loaders(folder))

    def scores(self) -> dict[str, float]:
        """The run's results: last loss, last and best bits per byte, last CORE, median speed; what was measured."""
        found: dict[str, list[float]] = {}
        for row in self.history():
            for name in ("loss", "val_bpb", "document_bpb", "core", "tokens_per_second"):
                if name in row:
                    found.setdefault(name, []).append(row[name])
        scores = {name: values[-1] for name, values in found.items() if name != "tokens_per_second"}
        if "val_bpb" in found:
            scores["min_val_bpb"] = min(found["val_bpb"])
        if "tokens_per_second" in found:
            scores["tokens_per_second"] = statistics.median_high(found["tokens_per_second"])
        return scores
