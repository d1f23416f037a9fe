"""Training tokens per second: the Trainer beside a bare loop, and our script beside upstream's.

    python benchmarks/pretrain.py                   # the microworld, without upstream
    python benchmarks/pretrain.py --eager           # the same without a C++ compiler
    python benchmarks/pretrain.py --data DATA_FOLDER --upstream NANOCHAT_CHECKOUT
    python benchmarks/pretrain.py --data DATA_FOLDER --upstream NANOCHAT_CHECKOUT --depths 4 6 --pairs 5 --block 3

Table 1 (loop) trains one model with one optimizer and one loader in two ways, alternating block by block: in a bare
loop, and in `NanochatTrainer` with the callbacks of training/pretrain.py.

Table 2 (scripts) starts whole scripts: ours and upstream's scripts/base_train.py, not compiled and compiled. They
train in turns: while one runs, the others are stopped by a signal.

Both tables are printed per depth. With --eager nothing is compiled. Tokens per second are those of the whole loop,
data included, without the first steps. A ratio is the median over pairs of neighbouring blocks, so that other load on
the machine affects both.
"""

import argparse
import gc
import os
import pickle
import pty
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path
from typing import Any

import torch
from benchmark_tools import UPSTREAM_HELP, HelpFormat, check_upstream, train_tokenizer, vocab_size_for
from transformers import TrainerCallback, TrainingArguments

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.data.loader import PackedLoader
from nanochat_hf.data.sources import open_documents
from nanochat_hf.openmp import without_our_choice
from nanochat_hf.optim import Schedule, apply_schedule, set_learning_rates
from nanochat_hf.settings import UserError, run_main
from nanochat_hf.tokenizer import token_byte_lengths
from nanochat_hf.trainers import callbacks
from nanochat_hf.trainers.pretraining import NanochatTrainer

ROOT = Path(__file__).resolve().parents[1]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormat)
    parser.add_argument("--data", default="microworld", help="source; with --upstream a folder of parquet shards")
    parser.add_argument("--upstream", type=Path, help=UPSTREAM_HELP)
    parser.add_argument("--depths", type=int, nargs="+", default=[4], help="layers; the hidden size is 64 × layers")
    parser.add_argument("--head_dim", type=int, default=64, help="width of an attention head")
    parser.add_argument("--sequence_length", type=int, default=512, help="tokens per row")
    parser.add_argument("--window_pattern", default="L", help="attention windows of the layers: L full, S short")
    parser.add_argument("--vocab_size", type=int, help="of the tokenizer trained here; 8192, for the microworld 512")
    parser.add_argument("--batch_size", type=int, default=4, help="rows per step")
    parser.add_argument("--block", type=int, default=4, help="measured steps per block")
    parser.add_argument("--pairs", type=int, default=8, help="blocks per contestant")
    parser.add_argument("--eager", action="store_true", help="compile nothing, which starts in seconds")
    parser.add_argument(
        "--tables", nargs="+", default=["loop", "scripts"], choices=["loop", "scripts"], help="tables to print"
    )
    options = parser.parse_args()
    if "scripts" in options.tables:
        options.upstream = check_upstream(options.upstream, "scripts/base_train.py")
    if Path(options.data).exists():
        options.data = str(Path(options.data).resolve())
    options.vocab_size = vocab_size_for(options.data, options.vocab_size, 8192)
    return options


def compilations(options: argparse.Namespace) -> list[bool]:
    """Whether models are compiled, for each way that is measured."""
    return [False] if options.eager else [False, True]


# -- table 1: the Trainer against a bare loop ------------------------------------------------------------------------


class StepTimes(TrainerCallback):
    """Records when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


class Pauses:
    """The longest pause of Python's garbage collector within this context, in seconds."""

    def __enter__(self) -> "Pauses":
        self.longest = 0.0
        gc.callbacks.append(self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        gc.callbacks.remove(self._note)

    def _note(self, phase: str, _: dict) -> None:
        if phase == "start":
            self._started = time.perf_counter()
        else:
            self.longest = max(self.longest, time.perf_counter() - self._started)


def bare_block(model: Any, optimizer: Any, loader: Any, schedule: Schedule, steps: int) -> list[float]:
    """The loop one would write by hand. Returns the times at which its steps ended."""
    ends = []
    for step in range(steps):
        batch = next(loader)
        loss = model(input_ids=batch["input_ids"], shift_labels=batch["shift_labels"], use_cache=False).loss
        loss.backward()
        set_learning_rates(optimizer, schedule.lr_factor(step))
        apply_schedule(optimizer, schedule, step)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        ends.append(time.perf_counter())
    return ends


def trainer_block(model: Any, optimizer: Any, loader: Any, schedule: Schedule, steps: int, folder: str) -> list[float]:
    """The same steps in the Trainer, with the callbacks of training/pretrain.py. Returns when the steps ended."""
    times = StepTimes()
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=loader.batch_size,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=10,
        save_strategy="no",
        ignore_data_skip=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = NanochatTrainer(
        model=model,
        args=arguments,
        loader=loader,
        flops_per_token=1.0,
        spike_threshold=100.0,
        schedule=schedule,
        optimizers=(optimizer, None),
        callbacks=[callbacks.TrainingProgress(), callbacks.QuietGarbageCollector(), callbacks.StopOnSignal(), times],
    )
    trainer.train()
    return times.ends


def compare_loops(options: argparse.Namespace, tokenizer: Any, depth: int, compiled: bool) -> None:
    """Prints table 1 for a model of this depth."""
    from nanochat_hf.optim import build_optimizer

    torch.manual_seed(0)
    config = NanochatHFConfig.from_depth(
        depth,
        vocab_size=-(-len(tokenizer) // 64) * 64,
        head_dim=options.head_dim,
        sequence_length=options.sequence_length,
        window_pattern=options.window_pattern,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = NanochatHFForCausalLM(config).to(device)
    optimizer = build_optimizer(model)
    if compiled:
        model.compile()
    loader = PackedLoader(
        options.data, tokenizer, batch_size=options.batch_size, sequence_length=options.sequence_length
    )
    schedule = Schedule(options.pairs * options.block)
    per_step = options.batch_size * options.sequence_length
    speeds: dict[str, list[float]] = {"bare loop": [], "Trainer": []}
    pauses: dict[str, list[float]] = {"bare loop": [], "Trainer": []}
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(options.pairs + 1):  # the first pair warms up
            for name in sorted(speeds, reverse=bool(pair % 2)):
                with Pauses() as collector:
                    if name == "Trainer":
                        ends = trainer_block(model, optimizer, loader, schedule, options.block + 1, folder)
                    else:
                        ends = bare_block(model, optimizer, loader, schedule, options.block + 1)
                if pair:
                    speeds[name].append(per_step * (len(ends) - 1) / (ends[-1] - ends[0]))
                    pauses[name].append(collector.longest)
    loader.close()
    kind = "compiled model" if compiled else "model"
    shape = f"d{depth}, {per_step:,} tokens per step"
    print(f"\n| loop over one {kind}, {shape} | tokens per second | times the bare loop |")
    print("|---|--:|--:|")
    for name, values in speeds.items():
        print(f"| {name} | {statistics.median(values):,.0f} | {ratio(values, speeds['bare loop'])} |")
    print(
        f"\nlongest pause of the garbage collector in a block: bare loop {max(pauses['bare loop']) * 1e3:.0f} ms, "
        f"Trainer {max(pauses['Trainer']) * 1e3:.0f} ms (its one collection after the first step, not in the figures)"
    )


# -- table 2: whole scripts in turns ---------------------------------------------------------------------------------


class Script:
    """A training script in a process of its own that can be stopped and continued.

    Attributes:
        log: its output so far.
        ends: step → time at which the output reported it.
    """

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path, step_pattern: str):
        self.log, self.pattern, self.ends = bytearray(), re.compile(step_pattern.encode()), {}
        self.started = time.perf_counter()
        self.terminal, end = pty.openpty()  # on a terminal, progress bars show every step
        termios.tcsetwinsize(end, (24, 160))
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**without_our_choice(), **environment, "PYTHONUNBUFFERED": "1"},
            stdout=end,
            stderr=end,
            start_new_session=True,
        )
        os.close(end)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self.terminal, 4096)
            except OSError:  # the script has ended
                return
            now = time.perf_counter()
            self.log += chunk
            for match in self.pattern.finditer(self.log[-8192:]):
                self.ends.setdefault(int(match[1]), now)

    def run(self, steps: int, limit: float = 600.0) -> list[float]:
        """Lets the script make `steps` more steps, then stops it. Returns when each of them ended.

        Raises:
            UserError: the script ended, or took longer than `limit` seconds.
        """
        before = set(self.ends)
        os.killpg(self.process.pid, signal.SIGCONT)
        deadline = time.perf_counter() + limit
        while len(self.ends) < len(before) + steps:
            if self.process.poll() is not None or time.perf_counter() > deadline:
                end = self.log.decode(errors="replace")[-3000:]
                raise UserError(f"a script ended too early or hangs; its output ends with:\n{end}")
            time.sleep(0.005)
        os.killpg(self.process.pid, signal.SIGSTOP)
        return sorted(end for step, end in self.ends.items() if step not in before)

    def close(self) -> None:
        """Ends the script."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def our_command(
    options: argparse.Namespace, depth: int, tokenizer_folder: Path, output: Path, compiled: bool
) -> list[str]:
    """training/pretrain.py with the benchmark's shapes."""
    command = [sys.executable, str(ROOT / "training" / "pretrain.py"), "--tokenizer", str(tokenizer_folder)]
    command += ["--output_dir", str(output), "--data", str(options.data), "--depth", str(depth)]
    command += ["--head_dim", str(options.head_dim), "--sequence_length", str(options.sequence_length)]
    command += ["--window_pattern", options.window_pattern, "--device_batch_size", str(options.batch_size)]
    command += ["--total_batch_size", str(options.batch_size * options.sequence_length), "--num_iterations", "100000"]
    return command + [
        "--eval_every",
        "-1",
        "--save_every",
        "-1",
        "--save_minutes",
        "0",
        "--compile",
        str(compiled).lower(),
    ]


def upstream_command(options: argparse.Namespace, depth: int) -> list[str]:
    """Upstream's script with the same shapes."""
    command = [sys.executable, "-m", "scripts.base_train", "--depth", str(depth)]
    command += ["--head-dim", str(options.head_dim), "--max-seq-len", str(options.sequence_length)]
    command += ["--window-pattern", options.window_pattern, "--device-batch-size", str(options.batch_size)]
    command += ["--total-batch-size", str(options.batch_size * options.sequence_length), "--num-iterations", "100000"]
    return command + ["--eval-every", "-1", "--core-metric-every", "-1", "--sample-every", "-1"]


def prepare_upstream(options: argparse.Namespace, tokenizer: Any, base: Path) -> dict[str, str]:
    """Puts our vocabulary and the shards where upstream's script looks for them; returns its environment."""
    from nanochat_hf.tokenizer import to_tiktoken

    (base / "tokenizer").mkdir(parents=True)
    (base / "tokenizer" / "tokenizer.pkl").write_bytes(pickle.dumps(to_tiktoken(tokenizer)))
    torch.save(torch.as_tensor(token_byte_lengths(tokenizer)), base / "tokenizer" / "token_bytes.pt")
    (base / "base_data_climbmix").symlink_to(Path(options.data).absolute(), target_is_directory=True)
    paths = [str(options.upstream)]
    try:
        import wandb  # noqa: F401
    except ImportError:  # the script imports it, but uses it only in runs that have a name
        (base / "empty_wandb").mkdir()
        (base / "empty_wandb" / "wandb.py").touch()
        paths.append(str(base / "empty_wandb"))
    return {"NANOCHAT_BASE_DIR": str(base), "PYTHONPATH": os.pathsep.join(paths)}


def compare_scripts(options: argparse.Namespace, tokenizer: Any, depth: int) -> None:
    """Prints table 2 for models of this depth."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        tokenizer.save_pretrained(base / "ours")
        bar, line = r"(\d+)/100000 \[", r"step (\d+)/100000 \("
        environment = prepare_upstream(options, tokenizer, base / "upstream") if options.upstream else {}
        starts, peers = {}, {}
        for compiled in compilations(options):
            suffix = ", compiled" if compiled else ""
            command = our_command(options, depth, base / "ours", base / f"run{suffix}", compiled)
            starts[f"ours{suffix}"] = (command, {}, ROOT, bar)
            if options.upstream:
                theirs = environment | ({} if compiled else {"TORCHDYNAMO_DISABLE": "1"})
                starts[f"upstream{suffix}"] = (upstream_command(options, depth), theirs, options.upstream, line)
            for name in (f"ours{suffix}", f"upstream{suffix}"):
                peers[name] = f"upstream{suffix}" if options.upstream else "ours"
        scripts: dict[str, Script] = {}
        first: dict[str, float] = {}
        speeds: dict[str, list[float]] = {name: [] for name in starts}
        per_step = options.batch_size * options.sequence_length
        try:
            for name, (command, variables, where, pattern) in starts.items():
                print(f"starting {name} …", flush=True)
                scripts[name] = Script(command, variables, where, pattern)
                first[name] = scripts[name].run(2)[-1] - scripts[name].started
                scripts[name].run(2)
            for pair in range(options.pairs):
                for name in list(scripts) if pair % 2 else reversed(scripts):
                    ends = scripts[name].run(options.block + 1)
                    speeds[name].append(per_step * (len(ends) - 1) / (ends[-1] - ends[0]))
        finally:
            for script in scripts.values():
                script.close()
    shape = f"d{depth}, {per_step:,} tokens per step"
    peer = "upstream's, equally compiled" if options.upstream else "ours"
    print(f"\n| script, {shape} | tokens per second | times {peer} | seconds to the first steps |")
    print("|---|--:|--:|--:|")
    for name, values in speeds.items():
        print(
            f"| {name} | {statistics.median(values):,.0f} | {ratio(values, speeds[peers[name]])} | {first[name]:.0f} |"
        )


def ratio(values: list[float], peers: list[float]) -> str:
    """Median of the pairwise ratios, with the range of the middle half."""
    ratios = sorted(value / peer for value, peer in zip(values, peers, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    return f"{statistics.median(ratios):.3f} (middle half of the pairs: {low:.3f}–{high:.3f})"


def main() -> None:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the scripts end too
    if not options.eager and not shutil.which("c++"):
        raise UserError("there is no C++ compiler to compile models with; give --eager")
    tokenizer = train_tokenizer(open_documents(options.data).next_batch(4000), options.vocab_size)
    for depth in options.depths:
        if "loop" in options.tables:
            for compiled in compilations(options):
                compare_loops(options, tokenizer, depth, compiled)
        if "scripts" in options.tables:
            compare_scripts(options, tokenizer, depth)


if __name__ == "__main__":
    run_main(main)
