"""A training step of the model beside transformers' NanoChat, the loss with and without all logits, and import time.

    python benchmarks/model.py                              everything that runs uncompiled
    python benchmarks/model.py --tables step --compile      a table by itself; its contestants compiled, too
    python benchmarks/model.py --device cuda --dtype bfloat16 --depth 12 --sequence-length 2048

Step: forward and backward of the classic model with the weights of a `NanoChatForCausalLM`, after their losses were
found equal, and of the modern model at the same shape. Contestants take turns, so that a busy machine slows all of
them; the tables have medians, of the ratio to the first row too. Memory is what a step needs beyond weights and
gradients at its peak, each measured in a process of its own (on CPUs what the operating system sees).
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.conversion import to_transformers
from nanochat_hf.model.loss_nanochat_hf import causal_loss, chunked_causal_loss, soft_cap

TABLES = ("step", "loss", "import")
THEIRS = "transformers' NanoChat"
STEPS = {
    THEIRS: {},
    "ours, classic": {"preset": "classic"},
    "ours, classic, all logits": {"preset": "classic", "return_logits": True},
    "ours, modern, windows off": {"preset": "modern", "window_pattern": "L"},
    "ours, modern": {"preset": "modern"},
    "ours, modern, masks instead of blocks": {"preset": "modern", "square_masks": True},
}
ALL_LOGITS, CHUNKED = "all logits", "chunked"
AUTO_MODEL = "from transformers import AutoModelForCausalLM"
IMPORTS = {"import transformers": "import nanochat_hf", AUTO_MODEL: f"import nanochat_hf; {AUTO_MODEL}"}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=[8192, 32768], help="the first one for steps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="of the matrix products; weights are float32")
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

    def step() -> torch.Tensor:
        model.zero_grad(set_to_none=False)
        with torch.autocast(options.device, dtype, enabled=dtype != torch.float32):
            loss = forward(labels=arguments["input_ids"], **arguments).loss
        loss.backward()
        return loss.detach()

    return step


def loss_of(name: str, options: argparse.Namespace) -> Callable[[], torch.Tensor]:
    """The head and the loss alone, with their gradients; the name is the way and the vocabulary."""
    way, vocab_size = name.split(", ")
    vocab_size = int(vocab_size.split()[-1])
    dtype, width = getattr(torch, options.dtype), options.depth * 64
    generator = torch.Generator().manual_seed(0)
    tokens = options.rows * options.sequence_length
    hidden = torch.randn(tokens, width, generator=generator).to(options.device, dtype).requires_grad_()
    weight = torch.nn.Parameter(0.02 * torch.randn(vocab_size, width, generator=generator).to(options.device))
    targets = torch.randint(0, vocab_size, (tokens,), generator=generator).to(options.device)

    def all_logits() -> torch.Tensor:
        return causal_loss(soft_cap(F.linear(hidden, weight.to(hidden.dtype)).float(), 15.0), targets, None)

    def by_parts() -> torch.Tensor:
        return chunked_causal_loss(hidden, weight, targets, 15.0, None)

    loss_function = all_logits if way == ALL_LOGITS else by_parts
    loss_function = torch.compile(loss_function) if options.compile else loss_function
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)

    def step() -> torch.Tensor:
        loss = loss_function()
        loss.backward()
        return loss.detach()

    return step


MAKERS = {"step": step_of, "loss": loss_of}


def peak_memory(step: Callable[[], Any], device: str) -> float:
    """MB that a step takes at its peak beyond what is there before it."""
    step()  # allocates the gradients, and what libraries keep
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = resident("VmRSS")
    step()
    return (resident("VmHWM") - before) / 1e3


def resident(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))


def memory_in_own_process(table: str, row: str) -> float:
    command = [sys.executable, *sys.argv, "--memory-of", table, row]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def compare(table: str, rows: list[str], options: argparse.Namespace, title: str) -> None:
    """Prints a table: tokens/s and peak memory of each row, and its ratio to the first one."""
    sync = torch.cuda.synchronize if options.device.startswith("cuda") else lambda: None
    steps = {row: MAKERS[table](row, options) for row in rows}
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    losses = {row: step().item() for row, step in steps.items()}
    tolerance = 1e-5 if options.dtype == "float32" else 2e-3
    for peer in [row for row in rows[1:] if "modern" not in row]:
        if abs(losses[peer] / losses[rows[0]] - 1) > tolerance:
            raise SystemExit(f"the losses differ: {rows[0]} {losses[rows[0]]}, {peer} {losses[peer]}")
    for turn in range(options.rounds):
        for row in rows if turn % 2 else reversed(rows):
            sync()
            start = time.perf_counter()
            steps[row]()
            sync()
            seconds[row].append(time.perf_counter() - start)
    del steps
    tokens = options.rows * options.sequence_length
    print(f"\n| {title} | tokens/s | times the first | MB at the peak |\n|---|--:|--:|--:|")
    for row in rows:
        ratio = statistics.median(first / own for first, own in zip(seconds[rows[0]], seconds[row], strict=True))
        speed = tokens / statistics.median(seconds[row])
        print(f"| {row} | {speed:,.0f} | {ratio:.2f} | {memory_in_own_process(table, row):,.0f} |", flush=True)


def compare_imports(rounds: int) -> None:
    print("\n| in a fresh process | s | of the first |\n|---|--:|--:|")
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
    main()
