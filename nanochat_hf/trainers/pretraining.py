"""`NanochatTrainer`: transformers' `Trainer` on packed rows, with nanochat's optimizer."""

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
        loader: an endless iterator of batches with `state_dict` and `load_state_dict` (`PackedLoader`).
        validation: batches to measure bits per byte on, re-iterable; None switches evaluation off.
        byte_lengths: bytes of each token of the vocabulary.
        flops_per_token: forward and backward, for MFU.
        peak_flops: of one device, in the dtype of the matrix products; 0 where unknown, then MFU is left out.
        spike_threshold: nats by which a loss may exceed the running mean before the run is stopped; 0 never stops.
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
        self.remove_callback(PrinterCallback)  # `callbacks.Progress` shows the same on one line
        if byte_lengths is not None:  # the vocabulary is padded to a multiple of 64: those rows stand for no bytes
            lengths = torch.as_tensor(byte_lengths)
            byte_lengths = lengths.new_zeros(self.model.config.vocab_size)
            byte_lengths[: len(lengths)] = lengths
        self.byte_lengths = byte_lengths
        self.loss_is_scaled_for_ga = False  # rows are full, so the mean of the micro-batches' means is exact
        self._mean_loss: float | None = None
        self._micro_batches: list[tuple[torch.Tensor, dict]] = []  # of the step in the making
        self._unchecked: deque[tuple[int, list[tuple[torch.Tensor, dict]]]] = deque()
        self._clock: tuple[int, float] | None = None
        self._paused = 0.0

    def get_train_dataloader(self) -> Any:
        return self.loader

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean loss in nats a token over a micro-batch."""
        outputs = model(input_ids=inputs["input_ids"], shift_labels=inputs["shift_labels"], use_cache=False)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> None:
        return None  # every row is full: nothing to count, nothing to gather

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        return self.flops_per_token * inputs["input_ids"].numel()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_batches.append((loss, inputs))
        if self.accelerator.sync_gradients:
            self._unchecked.append((self.state.global_step, self._micro_batches))
            self._micro_batches = []
            # On a GPU the newest losses are still being computed: look at an older step, so as not to wait.
            self._check_losses(but=0 if loss.device.type == "cpu" else 1)
        return loss

    def _check_losses(self, but: int = 0) -> None:
        """Judges the steps that have not been, `but` so many of the last: all of them before anything is saved."""
        while len(self._unchecked) > but:
            self._check_loss(*self._unchecked.popleft())

    def _check_loss(self, step: int, micro_batches: list[tuple[torch.Tensor, dict]]) -> None:
        """Stops on a loss that is not finite or far above the running mean, and keeps the step's rows for study.

        A step is judged as a whole: a single row may well be two nats harder than the mean.
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
                f"stopped at step {step}: the loss {what}; the batch is in {path}. Run again to go on from the last "
                "checkpoint, with a lower learning rate or a higher --spike_threshold if it happens again"
            )
        self._mean_loss = 0.95 * mean + 0.05 * value

    # -- measuring -----------------------------------------------------------------------------------------------

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Bits per byte on the validation batches; the time it takes does not count as training."""
        from nanochat_hf.evals.bits_per_byte import packed_bits_per_byte

        started = time.perf_counter()
        model = self.model_wrapped if self.is_in_train else self.model
        model.eval()
        with self.compute_loss_context_manager(), fp8.switched_off(self.model), fsdp.whole_weights(self.model):
            value = packed_bits_per_byte(model, self.validation, self.byte_lengths)
        model.train()
        metrics = {"val_bpb": value}
        self._paused += time.perf_counter() - started
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._check_losses()
        started = time.perf_counter()
        super()._save_checkpoint(model, trial)
        self._paused += time.perf_counter() - started

    @property
    def tokens_per_step(self) -> int:
        rows = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return rows * self.loader.sequence_length

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds tokens seen, tokens a second, MFU and the time left to a row of training losses."""
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

    def save_checkpoint_folder(self, folder: str | Path) -> None:
        """Writes the trained model with its tokenizer, for `from_pretrained`; every process has to call it."""
        self._check_losses()
        model, tokenizer = self.accelerator.unwrap_model(self.model), self.processing_class
        weights = fsdp.full_state_dict(model, keep=self.accelerator.is_main_process)
        if self.accelerator.is_main_process:
            control = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
            model.generation_config.update(**control)
            with fsdp.plain_class(model):
                model.save_pretrained(folder, state_dict=weights)
            tokenizer.save_pretrained(folder)

    def history(self) -> list[dict[str, float]]:
        """What was logged, numbers only, as `run.json` keeps it."""
        return [
            {name: value for name, value in row.items() if isinstance(value, int | float)}
            for row in self.state.log_history
        ]

    def scores(self) -> dict[str, float]:
        """What the run came to: last loss, last and best bits per byte, last CORE, median speed; those there are."""
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

    # -- the loader's place in the data ------------------------------------------------------------------------------

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        checkpoints.save_loader(self.loader.state_dict(), output_dir, self.args.process_index)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.loader.load_state_dict(checkpoints.load_loaders(checkpoint))
