"""Training steps per second beside transformers' NanoChat, the loss with and without all logits, and import time.

    python benchmarks/model.py                              # everything, not compiled
    python benchmarks/model.py --tables step --compile      # one table, compiled
    python benchmarks/model.py --device cuda --dtype bfloat16 --depth 12 --sequence-length 2048

Step: forward and backward pass of the classic model with the weights of a `NanoChatForCausalLM`, after their losses
were found equal; and of the modern model with the same shape, also with all products by MKL (on AMD processors the
large ones are oneDNN's). Loss: the output head and the loss alone. Import: a fresh process that imports transformers,
with and without this package.

The rows of a table take turns, so that other load on the machine slows all of them. The tables have medians, also of
the first row's time divided by the row's own. Memory is the peak of a step beyond weights and gradients, measured in
one process per row (on a CPU as the operating system reports it).
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from benchmark_tools import HelpFormat

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.conversion import to_transformers
from nanochat_hf.model import products_nanochat_hf
from nanochat_hf.model.loss_nanochat_hf import causal_loss, chunked_causal_loss, soft_cap
from nanochat_hf.settings import UserError, run_main

TABLES = ("step", "loss", "import")
THEIRS = "transformers' NanoChat"
STEPS = {
    THEIRS: {},
    "ours, classic": {"preset": "classic"},
    "ours, classic, all logits": {"preset": "classic", "return_logits": True},
    "ours, modern, windows off": {"preset": "modern", "window_pattern": "L"},
    "ours, modern": {"preset": "modern"},
    "ours, modern, masks instead of blocks": {"preset": "modern", "square_masks": True},
    "ours, modern, products by MKL alone": {"preset": "modern", "mkl": True},
}
ALL_LOGITS, CHUNKED = "all logits", "chunked"
AUTO_MODEL = "from transformers import AutoModelForCausalLM"
IMPORTS = {"import transformers": "import nanochat_hf", AUTO_MODEL: f"import nanochat_hf; {AUTO_MODEL}"}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormat)
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES, help="tables to print")
    parser.add_argument("--depth", type=int, default=6, help="layers; the hidden size is 64 × depth")
    parser.add_argument("--head-dim", type=int, default=64, help="width of an attention head")
    parser.add_argument("--sequence-length", type=int, default=512, help="tokens per row")
    parser.add_argument("--rows", type=int, default=4, help="rows per step")
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=[8192, 32768], help="the first is that of steps")
    parser.add_argument("--rounds", type=int, default=5, help="measured steps per row of a table")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--no-memory", action="store_true", help="leave memory out, which takes a process per row")
    parser.add_argument("--compile", action="store_true", help="compile the models and the losses")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="of matrix products: float32 or bfloat16")
    parser.add_argument("--memory-of", nargs=2, metavar=("TABLE", "ROW"), help=argparse.SUPPRESS)
    return parser.parse_args()


def step_of(name: str, options: argparse.Namespace) -> Callable[[], torch.Tensor]:
    """A training step up to the gradients; returns the loss."""
    how = STEPS[name]
    torch.manual_seed(0)
    config = NanochatHFConfig.from_depth(
        options.depth,
        vocab_size=options.vocab_sizes[0],
        head_dim=options.head_dim,
        sequence_length=options.sequence_length,
        preset=how.get("preset", "classic"),
        window_pattern=how.get("window_pattern"),
    )
    model = NanochatHFForCausalLM(config)
    with torch.no_grad():  # a new model's output projections are zero
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02)
    if name == THEIRS:
        model = to_transformers(model)
    model.to(options.device).train()
    forward = torch.compile(model) if options.compile else model
    shape = (options.rows, options.sequence_length)
    input_ids = torch.randint(0, config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    arguments = {"input_ids": input_ids.to(options.device), "use_cache": False}
    if how.get("square_masks"):
        arguments["attention_mask"] = torch.ones(shape, device=options.device, dtype=torch.long)
    if how.get("return_logits"):
        arguments["return_logits"] = True
    dtype = getattr(torch, options.dtype)
    only_mkl = mock.patch.object(products_nanochat_hf, "onednn_is_better", lambda: False)
    library = only_mkl if how.get("mkl") else contextlib.nullcontext()

    def step() -> torch.Tensor:
        model.zero_grad(set_to_none=False)
        with library:
            with torch.autocast(options.device, dtype, enabled=dtype != torch.float32):
                loss = forward(labels=arguments["input_ids"], **arguments).loss
            loss.backward()
        return loss.detach()

    return step


def loss_of(name: str, options: argparse.Namespace) -> Callable[[], torch.Tensor]:
    """The output head and the loss alone, with their gradients.

    Args:
        name: method and vocabulary, such as "chunked, vocabulary 8192".
    """
    method, vocab_size = name.split(", ")
    vocab_size = int(vocab_size.split()[-1])
    dtype, width = getattr(torch, options.dtype), options.depth * 64
    generator = torch.Generator().manual_seed(0)
    tokens = options.rows * options.sequence_length
    hidden = torch.randn(tokens, width, generator=generator).to(options.device, dtype).requires_grad_()
    weight = torch.nn.Parameter(0.02 * torch.randn(vocab_size, width, generator=generator).to(options.device))
    targets = torch.randint(0, vocab_size, (tokens,), generator=generator).to(options.device)

    def all_logits() -> torch.Tensor:
        return causal_loss(soft_cap(F.linear(hidden, weight.to(hidden.dtype)).float(), 15.0), targets, None)

    def chunked() -> torch.Tensor:
        return chunked_causal_loss(hidden, weight, targets, 15.0, None)

    loss_function = all_logits if method == ALL_LOGITS else chunked
    loss_function = torch.compile(loss_function) if options.compile else loss_function
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)

    def step() -> torch.Tensor:
        loss = loss_function()
        loss.backward()
        return loss.detach()

    return step


MAKERS = {"step": step_of, "loss": loss_of}


def peak_memory(step: Callable[[], Any], device: str) -> float:
    """Peak memory of a step in MB, beyond what is allocated before it."""
    step()  # allocates the gradients and the libraries' buffers
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak
    before = resident("VmRSS")
    step()
    return (resident("VmHWM") - before) / 1e3


def resident(name: str) -> int:
    """A memory figure of this process from the operating system, in kB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))


def memory_in_own_process(table: str, row: str) -> float:
    """Peak memory of one row's step in MB, measured in a fresh process."""
    command = [sys.executable, *sys.argv, "--memory-of", table, row]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def compare(table: str, rows: list[str], options: argparse.Namespace, title: str) -> None:
    """Prints a table: tokens per second of each row, the first row's time divided by its own, and peak memory.

    Raises:
        UserError: rows that must compute the same loss do not.
    """
    sync = torch.cuda.synchronize if options.device.startswith("cuda") else lambda: None
    steps = {row: MAKERS[table](row, options) for row in rows}
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    losses = {row: step().item() for row, step in steps.items()}
    tolerance = 1e-5 if options.dtype == "float32" else 2e-3
    for peer in [row for row in rows[1:] if "modern" not in row]:
        if abs(losses[peer] / losses[rows[0]] - 1) > tolerance:
            raise UserError(f"the losses differ: {rows[0]} {losses[rows[0]]}, {peer} {losses[peer]}")
    for turn in range(options.rounds):
        for row in rows if turn % 2 else reversed(rows):
            sync()
            start = time.perf_counter()
            steps[row]()
            sync()
            seconds[row].append(time.perf_counter() - start)
    del steps
    tokens = options.rows * options.sequence_length
    print(f"\n| {title} | tokens per second | times the first row | peak MB |\n|---|--:|--:|--:|")
    for row in rows:
        ratio = statistics.median(first / own for first, own in zip(seconds[rows[0]], seconds[row], strict=True))
        speed = tokens / statistics.median(seconds[row])
        memory = "–" if options.no_memory else f"{memory_in_own_process(table, row):,.0f}"
        print(f"| {row} | {speed:,.0f} | {ratio:.2f} | {memory} |", flush=True)


def compare_imports(rounds: int) -> None:
    """Prints the seconds of imports without and with this package, each in a fresh process."""
    print("\n| in a fresh process | seconds | ÷ the one above |\n|---|--:|--:|")
    for pair in IMPORTS.items():
        seconds: dict[str, list[float]] = {code: [] for code in pair}
        for _ in range(rounds + 1):
            for code in pair:
                start = time.perf_counter()
                subprocess.run([sys.executable, "-c", code], check=True)
                seconds[code].append(time.perf_counter() - start)
        first = seconds[pair[0]][1:]  # without the round that fills the disk's cache
        for code in pair:
            ratio = statistics.median(own / other for own, other in zip(seconds[code][1:], first, strict=True))
            print(f"| `{code}` | {statistics.median(seconds[code][1:]):.2f} | {ratio:.2f} |", flush=True)


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        table, row = options.memory_of
        print(peak_memory(MAKERS[table](row, options), options.device))
        return
    shape = f"d{options.depth}, {options.rows} × {options.sequence_length} tokens, {options.dtype}, {options.device}"
    shape += ", compiled" if options.compile else ""
    if "step" in options.tables:
        compare("step", list(STEPS), options, f"step: {shape}, vocabulary {options.vocab_sizes[0]:,}")
    if "loss" in options.tables:
        for size in options.vocab_sizes:
            compare(
                "loss",
                [f"{ALL_LOGITS}, vocabulary {size}", f"{CHUNKED}, vocabulary {size}"],
                options,
                f"loss: {shape}",
            )
    if "import" in options.tables:
        compare_imports(options.rounds)


if __name__ == "__main__":
    run_main(main)
