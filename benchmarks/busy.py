"""Speed beside other programs: what it costs to let OpenMP's threads spin, sleep, or spin for a bounded time.

    python benchmarks/busy.py                                   # free, then with one busy neighbour per setting
    python benchmarks/busy.py --neighbours 0 1 2 --seconds 20 --rounds 3
    python benchmarks/busy.py --spins 1000 5000 20000 --parts training

The model is the quickstart's: four layers of width 128. A neighbour is a process that computes without end. Each
measurement is a process of its own, because OpenMP reads its settings once. The rounds alternate over the settings.

Settings: `torch's` sets nothing; `spin N` is `GOMP_SPINCOUNT=N`; `passive` is `OMP_WAIT_POLICY=PASSIVE`; `one thread`
is `OMP_NUM_THREADS=1`. `product` is what every command of this project sets.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmark_tools import HelpFormat

from nanochat_hf.openmp import bound_spinning
from nanochat_hf.settings import UserError, run_main

ROWS, LENGTH, VOCAB_SIZE = 21, 96, 1536  # the quickstart's step
PROMPT, NEW_TOKENS = 40, 48
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
NEIGHBOUR = "while True: sum(range(100_000))"
PARTS = ("training", "evaluation", "rollouts", "chat")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormat)
    parser.add_argument("--neighbours", nargs="+", type=int, default=[0, 1], help="busy processes beside the measured")
    parser.add_argument("--spins", nargs="*", type=int, default=[1000, 5000, 20000], help="spin counts to try")
    parser.add_argument("--settings", nargs="+", help="names of the settings to measure; the first is the reference")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what is measured")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of the measured process")
    parser.add_argument("--seconds", type=float, default=10.0, help="per part and measurement")
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each setting")
    parser.add_argument("--output", type=Path, help="file for all figures, as JSON")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min([*options.neighbours, *options.spins]) < 0 or options.rounds < 1 or options.seconds <= 0:
        raise UserError("--neighbours and --spins take numbers from 0 on, --rounds from 1, --seconds above 0")
    if unknown := set(options.settings or ()) - set(all_settings(options)):
        raise UserError(f"there is no setting {sorted(unknown)[0]!r}; choose from {', '.join(all_settings(options))}")
    return options


def all_settings(options: argparse.Namespace) -> dict[str, dict[str, str]]:
    """The environment of each setting, without the number of threads where that is not its point."""
    product: dict[str, str] = {}
    bound_spinning(product)
    found = {"torch's": {}, "product": product}
    found |= {f"spin {count}": {"GOMP_SPINCOUNT": str(count)} for count in options.spins}
    return found | {"passive": {"OMP_WAIT_POLICY": "PASSIVE"}, "one thread": {"OMP_NUM_THREADS": "1"}}


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Runs `count` neighbours, and ends them."""
    running = [subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measure_in_process(options: argparse.Namespace, environment: dict[str, str]) -> dict[str, float]:
    """Tokens per second of each part, from a process with this environment.

    Raises:
        UserError: it failed; the message holds the end of its output.
    """
    kept = {name: value for name, value in os.environ.items() if name not in WAITING}
    kept |= {"OMP_NUM_THREADS": str(options.threads)} | environment
    command = [sys.executable, __file__, "--measure", "--seconds", str(options.seconds), "--parts", *options.parts]
    done = subprocess.run(command, env=kept, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"a measurement failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# -- within a measured process --


def speed(work: Callable[[], int], seconds: float) -> float:
    """Tokens per second of `work`, which returns how many it has done; the first call is a warm-up."""
    work()
    start, tokens = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds or not tokens:
        tokens += work()
    return tokens / passed


def measured_parts() -> dict[str, Callable[[], int]]:
    """A function for each part that does a bit of it and returns the number of tokens."""
    import torch
    from generation import NoTokenizer, ours

    from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
    from nanochat_hf.optim import build_optimizer

    torch.manual_seed(0)
    shape: dict[str, Any] = {"aspect_ratio": 32, "head_dim": 32, "window_pattern": "L", "sequence_length": 256}
    model = NanochatHFForCausalLM(NanochatHFConfig.from_depth(4, vocab_size=VOCAB_SIZE, **shape))
    optimizer = build_optimizer(model)
    ids = torch.randint(0, VOCAB_SIZE - 9, (ROWS, LENGTH + 1))
    sampled = NanochatHFForCausalLM(model.config).eval()
    with torch.no_grad():
        sampled.lm_head.weight.normal_(std=0.02)
        sampled.lm_head.weight[-9:] = 0  # control tokens never reach the top 50
    tokenizer, prompt = NoTokenizer(VOCAB_SIZE), list(range(PROMPT))

    def training() -> int:
        model.train()(input_ids=ids[:, :-1], shift_labels=ids[:, 1:], use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return ROWS * LENGTH

    @torch.inference_mode()
    def evaluation() -> int:
        sampled(input_ids=ids[:, :-1], use_cache=False)
        return ROWS * LENGTH

    def rollouts(samples: int = 16) -> int:
        ours(sampled, tokenizer, prompt, samples, NEW_TOKENS)
        return samples * NEW_TOKENS

    return {
        "training": training,
        "evaluation": evaluation,
        "rollouts": rollouts,
        "chat": lambda: rollouts(samples=1),
    }


# -- the table --


def print_table(options: argparse.Namespace, found: dict[int, dict[str, dict[str, list[float]]]]) -> None:
    """Prints medians: tokens per second, and their share of the first setting's with the fewest neighbours."""
    first = next(iter(found[min(found)]))
    free = found[min(found)][first]
    for part in options.parts:
        titles = " | ".join(f"{count} neighbours | share" for count in options.neighbours)
        print(f"\n| {part}, tokens per second, {options.threads} threads | {titles} |")
        print("|---|" + "--:|--:|" * len(options.neighbours))
        reference = statistics.median(free[part])
        for name in found[options.neighbours[0]]:
            middle = [statistics.median(found[count][name][part]) for count in options.neighbours]
            cells = " | ".join(f"{one:,.0f} | {one / reference:.0%}" for one in middle)
            print(f"| {name} | {cells} |", flush=True)


def main() -> None:
    options = parse_arguments()
    if options.measure:
        parts = measured_parts()
        print(json.dumps({part: speed(parts[part], options.seconds) for part in options.parts}))
        return
    found: dict[int, dict[str, dict[str, list[float]]]] = {}
    for _ in range(options.rounds):
        for count in options.neighbours:
            environments = all_settings(options)
            for name in options.settings or environments:
                with busy(count):
                    figures = measure_in_process(options, environments[name])
                for part, value in figures.items():
                    found.setdefault(count, {}).setdefault(name, {}).setdefault(part, []).append(value)
                print(f"{count} neighbours, {name}: {figures}", file=sys.stderr, flush=True)
    print_table(options, found)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if "--measure" in sys.argv:  # `run_main` would bound the spin
        main()
    else:
        run_main(main)
