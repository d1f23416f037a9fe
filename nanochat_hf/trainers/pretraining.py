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
5. Muon and AdamW. Trainer calls `optimizer.step`: optim/muon_adamw.py:MuonAdamW.step waits for the reductions,
   updates each bucket with the kernels in optim/kernels.py and sends the new weights to all processes. Then Trainer
   advances the scheduler and clears the gradients.
6. Checks. trainers/pretraining.py:NanochatTrainer._check_losses stops the run at a loss that is not finite or far
   above its mean. It is called at the end of training_step, before the optimizer's step (on a GPU one step later).
7. Log, evaluation, checkpoint. Trainer calls the callbacks (trainers/callbacks.py), then as the intervals say
   trainers/pretraining.py:NanochatTrainer.log and `evaluate`, and MuonAdamWMixin.save_model for a checkpoint, which
   trainers/mixin.py:Checkpointing completes.

trainers/pretraining_setup.py builds the model and this trainer from the settings of training/pretrain.py.
"""

import math
import statistics
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PrinterCallback, Trainer

from nanochat_hf.settings import UserError
from nanochat_hf.trainers import checkpoints, fp8, fsdp
from nanochat_hf.trainers.mixin import MuonAdamWMixin


class NanochatTrainer(MuonAdamWMixin, Trainer):
    """Pretraining on packed rows.

    Args:
        loader: an endless iterator of batches with `state_dict` and `load_state_dict` (`PackedLoader`). A batch holds
            `input_ids` and `shift_labels`, int64 [rows, tokens].
        validation: batches to measure bits per byte on, an iterable that can be read again; None: no evaluation.
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
        byte_lengths: Any = None,
        flops_per_token: float = 0.0,
        peak_flops: float = 0.0,
        spike_threshold: float = 0.0,
        **kwargs,
    ):
        self.loader, self.validation = loader, validation
        self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
        self.spike_threshold = spike_threshold
        super().__init__(*args, eval_dataset=validation, **kwargs)  # Trainer insists on it; `evaluate` is our own
        self.remove_callback(PrinterCallback)  # `callbacks.TrainingProgress` shows the same on one line
        if byte_lengths is not None:  # the vocabulary is padded to a multiple of 64: the added rows have no bytes
            lengths = torch.as_tensor(byte_lengths)
            byte_lengths = lengths.new_zeros(self.model.config.vocab_size)
            byte_lengths[: len(lengths)] = lengths
        self.byte_lengths = byte_lengths
        self.loss_is_scaled_for_ga = False  # rows are full, so the mean of the micro-batches' means is exact
        self._mean_loss: float | None = None
        self._micro_batches: list[tuple[torch.Tensor, dict]] = []  # of the current step
        self._unchecked: deque[tuple[int, list[tuple[torch.Tensor, dict]]]] = deque()
        self._clock: tuple[int, float] | None = None
        self._paused = 0.0

    def get_train_dataloader(self) -> Any:
        return self.loader

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
            self._unchecked.append((self.state.global_step, self._micro_batches))
            self._micro_batches = []
            # On a GPU the newest losses are still being computed. To look at them would wait for them.
            self._check_losses(unchecked=0 if loss.device.type == "cpu" else 1)
        return loss

    def _check_losses(self, unchecked: int = 0) -> None:
        """Checks the losses of all steps but the newest `unchecked`. Before anything is saved, all are checked."""
        while len(self._unchecked) > unchecked:
            self._check_loss(*self._unchecked.popleft())

    def _check_loss(self, step: int, micro_batches: list[tuple[torch.Tensor, dict]]) -> None:
        """Stops at a loss that is not finite or far above the running mean, and writes the step's rows to a file.

        The mean over the step's micro-batches counts, because a single row may be two nats harder than the mean.

        Raises:
            UserError: names the step, the loss and the file.
        """
        value = float(torch.stack([loss for loss, _ in micro_batches]).sum())  # each is divided by their number
        mean = value if self._mean_loss is None else self._mean_loss
        spike = self.spike_threshold > 0 and value - mean > self.spike_threshold
        if not math.isfinite(value) or spike:
            path = Path(self.args.output_dir) / f"bad-batch-step{step}-rank{self.args.process_index}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = {
                name: torch.cat([inputs[name].cpu() for _, inputs in micro_batches]) for name in micro_batches[0][1]
            }
            save_file(rows, path)
            what = f"rose to {value:.3f} from a mean of {mean:.3f}" if math.isfinite(value) else f"is {value}"
            raise UserError(
                f"stopped at step {step}: the loss {what}; the batch is in {path}; run the same command again to "
                "resume from the last checkpoint; if it happens again, lower the learning rate or raise "
                "--spike_threshold"
            )
        self._mean_loss = 0.95 * mean + 0.05 * value

    # -- measuring -----------------------------------------------------------------------------------------------

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Bits per byte on the validation batches. The time it takes does not count as training time."""
        from nanochat_hf.evals.bits_per_byte import packed_bits_per_byte

        started = time.perf_counter()
        model = self.model_wrapped if self.is_in_train else self.model
        model.eval()
        with self.compute_loss_context_manager(), fp8.full_precision(self.model), fsdp.gathered_weights(self.model):
            value = packed_bits_per_byte(model, self.validation, self.byte_lengths)
        model.train()
        metrics = {"val_bpb": value}
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
            for name in ("loss", "val_bpb", "core", "tokens_per_second"):
                if name in row:
                    found.setdefault(name, []).append(row[name])
        scores = {name: values[-1] for name, values in found.items() if name != "tokens_per_second"}
        if "val_bpb" in found:
            scores["min_val_bpb"] = min(found["val_bpb"])
        if "tokens_per_second" in found:
            scores["tokens_per_second"] = statistics.median_high(found["tokens_per_second"])
        return scores
