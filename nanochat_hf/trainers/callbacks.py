"""What happens beside training: progress bar, garbage collection, stopping on SIGTERM, samples and CORE on the way."""

import gc
import signal
import time
from typing import Any

import torch
import torch.distributed as dist
from tqdm.auto import tqdm
from transformers import TrainerCallback

from nanochat_hf.trainers import fp8, fsdp

SAMPLE_PROMPTS = ("The capital of France is", "If yesterday was Friday, then tomorrow is", "My favourite colour is")


def seconds_since_start() -> float:
    """How long this process has existed, the imports of libraries included."""
    import psutil

    return time.time() - psutil.Process().create_time()


class Progress(TrainerCallback):
    """One bar with loss, bits per byte, speed and MFU; prints the time to the first step."""

    def __init__(self) -> None:
        self.bar, self.shown = None, {}

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True)
        self.first_step = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
            if state.global_step == self.first_step + 1:
                self.bar.write(f"first step done {seconds_since_start():.1f} s after the start of the process")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bar is None:
            return
        forms = {"loss": ("loss", "{:.3f}"), "val_bpb": ("val bpb", "{:.4f}")}
        forms |= {"tokens_per_second": ("tok/s", "{:,.0f}"), "mfu": ("MFU", "{:.1%}")}
        self.shown |= {forms[name][0]: forms[name][1].format(logs[name]) for name in forms if name in logs}
        self.bar.set_postfix(self.shown)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()


class QuietGarbageCollector(TrainerCallback):
    """Python's collector scans every live object for cycles, up to half a second at a time; training makes few."""

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
    """SIGTERM: finish the step, save a checkpoint, end. All ranks agree on the step; `received` says it happened."""

    def __init__(self, every: int = 10) -> None:
        self.flagged, self.received, self.every = False, False, every

    def on_train_begin(self, args, state, control, **kwargs):
        self.previous = signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: Any) -> None:
        self.flagged = True

    def on_step_end(self, args, state, control, **kwargs):
        stop = self.flagged
        if dist.is_available() and dist.is_initialized():
            if state.global_step % self.every:
                return
            votes = torch.tensor([float(stop)], device=args.device)
            dist.all_reduce(votes)
            stop = votes.item() > 0
        if stop:
            self.received = True
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        signal.signal(signal.SIGTERM, self.previous)


class Interlude(TrainerCallback):
    """Something that halts training at intervals; the time it takes is kept in `paused`, it is not training time."""

    def __init__(self, every: int) -> None:
        self.every, self.paused = every, 0.0

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        started = time.perf_counter()
        model.eval()
        with torch.no_grad(), fp8.switched_off(model), fsdp.whole_weights(model):
            self.play(model, state)
        model.train()
        self.paused += time.perf_counter() - started

    def play(self, model: torch.nn.Module, state: Any) -> None:
        raise NotImplementedError


class Samples(Interlude):
    """Greedy continuations of a few fixed prompts, to see the model learn."""

    def __init__(self, tokenizer: Any, every: int, prompts=SAMPLE_PROMPTS, length: int = 16) -> None:
        super().__init__(every)
        self.tokenizer, self.prompts, self.length = tokenizer, prompts, length

    def play(self, model, state):
        if not state.is_world_process_zero and not fsdp.is_sharded(model):  # a sharded model generates on all at once
            return
        for prompt in self.prompts:
            ids = [self.tokenizer.bos_token_id, *self.tokenizer.encode(prompt, add_special_tokens=False)]
            found = model.generate(
                torch.tensor([ids], device=model.device), max_new_tokens=self.length, do_sample=False
            )
            if state.is_world_process_zero:
                tqdm.write(f"step {state.global_step}: {self.tokenizer.decode(found[0][1:])!r}")


class CoreMetric(Interlude):
    """CORE at intervals, on a bundle folder, logged as `core`."""

    def __init__(self, tokenizer: Any, bundle: str | None, every: int, max_per_task: int = 500) -> None:
        super().__init__(every)
        self.tokenizer, self.bundle, self.max_per_task, self.tasks = tokenizer, bundle, max_per_task, None

    def encode(self, texts: list[str]) -> list[list[int]]:
        bos = [self.tokenizer.bos_token_id]
        return [bos + ids for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def play(self, model, state):
        from nanochat_hf.evals.core import evaluate_task, headline_metric, load_bundle, summarize
        from nanochat_hf.evals.headlines import HEADLINE_TITLES

        if self.tasks is None:
            self.tasks = load_bundle(self.bundle, max_per_task=self.max_per_task)
        results = [evaluate_task(model, self.encode, task) for task in self.tasks]
        metric = headline_metric(results)  # "core", unless the bundle is the microworld's
        score = summarize(results)[metric]
        if state.is_world_process_zero:
            state.log_history.append({"step": state.global_step, metric: score})
            tqdm.write(f"step {state.global_step}: {HEADLINE_TITLES[metric]} {score:.4f}")
