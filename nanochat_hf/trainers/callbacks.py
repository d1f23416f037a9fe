"""What happens beside training: progress, garbage collection, stopping on SIGTERM, samples and CORE during the run."""

import gc
import signal
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm
from transformers import TrainerCallback

from nanochat_hf.progress import progress_bar
from nanochat_hf.settings import UserError
from nanochat_hf.trainers import checkpoints, fp8, fsdp

SAMPLE_PROMPTS = ("The capital of France is", "If yesterday was Friday, then tomorrow is", "My favourite colour is")


def seconds_since_start() -> float:
    """How long this process has existed, the imports of libraries included."""
    import psutil

    return time.time() - psutil.Process().create_time()


class TrainingProgress(TrainerCallback):
    """Progress with the figures that matter of all that is logged; prints the time to the first step."""

    FIGURES = {
        "loss": ("loss", "{:.3f}"),
        "val_bpb": ("val bpb", "{:.4f}"),
        "document_bpb": ("whole documents", "{:.4f}"),
        "tokens_per_second": ("tok/s", "{:,.0f}"),
        "mfu": ("MFU", "{:.1%}"),
        "reward": ("reward", "{:.3f}"),
        "completions/mean_length": ("length", "{:.3f}"),
    }

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.shown: dict[str, str] = {}
        self.first_step = 0

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar = progress_bar(total=state.max_steps, initial=state.global_step, desc="training", unit=" steps")
        self.first_step = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:  # the last loss is the run's result
            control.should_log = True
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
            if state.global_step == self.first_step + 1:
                self.bar.write(f"first step done {seconds_since_start():.1f} s after the start of the process")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bar is None:
            return
        for name, value in (logs or {}).items():
            if value is None:  # the mean of nothing, where no answer of a step has a reward
                continue
            if name in self.FIGURES:
                title, form = self.FIGURES[name]
                self.shown[title] = form.format(value)
            elif name.startswith("val_"):
                self.shown[name.removesuffix("_tokens")] = f"{value:.3f}"
        self.bar.set_postfix(self.shown, refresh=sys.stderr.isatty())

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()


class QuietGarbageCollector(TrainerCallback):
    """Switches Python's garbage collector off after the first step and runs it every `every` steps.

    It scans every live object for reference cycles, which takes up to half a second; training makes few cycles.
    """

    def __init__(self, every: int = 5000) -> None:
        self.every, self.frozen = every, False

    def on_step_end(self, args, state, control, **kwargs):
        if not self.frozen:
            gc.collect()
            gc.freeze()
            gc.disable()
            self.frozen = True
        elif state.global_step % self.every == 0:
            gc.collect()

    def on_train_end(self, args, state, control, **kwargs):
        gc.unfreeze()
        gc.enable()


class StopOnSignal(TrainerCallback):
    """On SIGTERM: finishes the step, saves a checkpoint and ends training. `received` says that it happened.

    A checkpoint is also saved when the last one is `minutes` old. With several processes, a signal to one of them
    stops all after the same step, and one clock decides for all.

    Args:
        every: steps between two agreements of the processes; each is a reduction of two numbers.
        minutes: the longest time between two checkpoints; 0: there is none.
    """

    def __init__(self, every: int = 10, minutes: float = 0.0) -> None:
        self.flagged, self.received, self.every, self.minutes = False, False, every, minutes
        self.saved_at = time.monotonic()
        self.previous: Any = None  # the handler before training; None: ours is not installed

    def on_train_begin(self, args, state, control, **kwargs):
        self.saved_at = time.monotonic()
        self.previous = signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: Any) -> None:
        self.flagged = True

    def on_step_end(self, args, state, control, **kwargs):
        stop = self.flagged
        save = self.minutes > 0 and time.monotonic() - self.saved_at >= 60 * self.minutes
        if dist.is_available() and dist.is_initialized():
            if state.global_step % self.every:
                return
            votes = torch.tensor([float(stop), float(save)], device=args.device)
            dist.all_reduce(votes)
            stop, save = votes[0].item() > 0, votes[1].item() > 0
        if stop:
            self.received = True
            control.should_training_stop = True
        if stop or save:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        self.saved_at = time.monotonic()

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()

    def restore(self) -> None:
        """Gives SIGTERM back to the handler it had before training."""
        if self.previous is not None:
            signal.signal(signal.SIGTERM, self.previous)
            self.previous = None


class FinalWeights(TrainerCallback):
    """Writes the weights after the last step, before any evaluation of that step: a run killed there keeps them."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.written, self.paused = trainer, False, 0.0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            self.write()

    def write(self) -> None:
        """Writes them into the output folder, unless that is done. Every process has to call it.

        Raises:
            UserError: the disk is full or the like.
        """
        if self.written:
            return
        started, folder = time.perf_counter(), self.trainer.args.output_dir
        try:
            self.trainer.save_model(folder)
        except Exception as error:
            if not checkpoints.is_write_error(error):
                raise
            raise UserError(
                f"cannot write the weights to {folder} ({error}); make room and run the same command again"
            ) from error
        self.written = True
        self.paused += time.perf_counter() - started


class PeriodicEvaluation(TrainerCallback):
    """Interrupts training every `every` steps and after the last step; a subclass says what to `evaluate`.

    `paused` counts the seconds it took since it was last read: they are not training time.
    """

    def __init__(self, every: int) -> None:
        self.every, self.paused = every, 0.0

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        started = time.perf_counter()
        model.eval()
        with torch.no_grad(), fp8.full_precision(model), fsdp.gathered_weights(model):
            self.evaluate(model, state)
        model.train()
        self.paused += time.perf_counter() - started

    def evaluate(self, model: Any, state: Any) -> None:
        raise NotImplementedError


class Samples(PeriodicEvaluation):
    """Prints greedy continuations of a few fixed prompts.

    Args:
        length: new tokens per prompt.
    """

    def __init__(self, tokenizer: Any, every: int, prompts=SAMPLE_PROMPTS, length: int = 16) -> None:
        super().__init__(every)
        self.tokenizer, self.prompts, self.length = tokenizer, prompts, length

    def evaluate(self, model, state):
        if not state.is_world_process_zero and not fsdp.is_sharded(model):  # a sharded model generates on all at once
            return
        for prompt in self.prompts:
            ids = [self.tokenizer.bos_token_id, *self.tokenizer.encode(prompt, add_special_tokens=False)]
            found = model.generate(
                torch.tensor([ids], device=model.device), max_new_tokens=self.length, do_sample=False
            )
            if state.is_world_process_zero:
                tqdm.write(f"step {state.global_step}: {self.tokenizer.decode(found[0][1:])!r}")


class CoreMetric(PeriodicEvaluation):
    """Measures CORE on a bundle folder and logs it as `core`.

    Args:
        bundle: folder of the CORE evaluation bundle.
        max_per_task: examples of each task; -1 takes all.
    """

    def __init__(self, tokenizer: Any, bundle: str, every: int, max_per_task: int = 500) -> None:
        super().__init__(every)
        self.tokenizer, self.bundle, self.max_per_task = tokenizer, bundle, max_per_task
        self.tasks: list[Any] | None = None

    def encode(self, texts: list[str]) -> list[list[int]]:
        bos = [self.tokenizer.bos_token_id]
        return [bos + ids for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def evaluate(self, model, state):
        from nanochat_hf.evals.bundle import load_bundle
        from nanochat_hf.evals.core import evaluate_task, headline_metric, summarize
        from nanochat_hf.evals.headlines import HEADLINE_TITLES

        if self.tasks is None:
            self.tasks = load_bundle(self.bundle, max_per_task=self.max_per_task)
        results = [evaluate_task(model, self.encode, task) for task in self.tasks]
        metric = headline_metric(results)  # "core", unless the bundle is the microworld's
        score = summarize(results)[metric]
        state.log_history.append({"step": state.global_step, metric: score})
        if state.is_world_process_zero:
            tqdm.write(f"step {state.global_step}: {HEADLINE_TITLES[metric]} {score:.4f}")
