"""Speed beside other programs: what it costs to let OpenMP's threads spin, sleep, or spin for a bounded time.

    python benchmarks/busy.py --neighbours 0 1 --seconds 20 --rounds 3      # a quarter of an hour
    python benchmarks/busy.py --spins 1000 5000 20000 --parts training
    python benchmarks/busy.py --settings "torch's" product "one thread"

The model is the quickstart's: four layers of width 128. A neighbour is a process that computes without end. Each
measurement is a process of its own, because OpenMP reads its settings once. The rounds alternate over the settings.

Settings: `torch's` sets nothing; `passive` is `OMP_WAIT_POLICY=PASSIVE`, a spin of 0; `spin N` is `GOMP_SPINCOUNT=N`;
`one thread` is `OMP_NUM_THREADS=1`. `product` is what every command of this project sets when it starts: another spin
count on a free machine than on a busy one.

The tables say what each setting loses on the free machine, and which share of the free machine's speed it keeps beside
neighbours. Both compare with the first setting on the free machine. The last table has the worst part of each setting.
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

from nanochat_hf.openmp import BUSY_SPINS, RECORDS, SPINS, bound_spinning
from nanochat_hf.settings import UserError, run_main

ROWS, LENGTH, VOCAB_SIZE = 21, 96, 1536  # the quickstart's step
PROMPT, NEW_TOKENS = 40, 48
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS", *RECORDS.values())
NEIGHBOUR = "while True: sum(range(100_000))"
PARTS = ("training", "evaluation", "rollouts", "chat")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormat)
    parser.add_argument("--neighbours", nargs="+", type=int, default=[0, 1], help="busy processes beside the measured")
    parser.add_argument("--spins", nargs="*", type=int, default=[BUSY_SPINS, SPINS], help="spin counts to try")
    parser.add_argument(
        "--settings",
        nargs="+",
        help="settings to measure, the reference first; default: torch's, passive and the spin counts",
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what is measured")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of the measured process")
    parser.add_argument("--seconds", type=float, default=20.0, help="per measurement, divided among its parts")
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each setting")
    parser.add_argument("--output", type=Path, help="file for all figures, as JSON")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min([*options.neighbours, *options.spins]) < 0 or options.rounds < 1 or options.seconds <= 0:
        raise UserError("--neighbours and --spins take numbers from 0 on, --rounds from 1, --seconds above 0")
    if options.settings is None:
        options.settings = ["torch's", "passive", *(f"spin {count}" for count in options.spins)]
    if unknown := set(options.settings) - set(all_settings(options)):
        raise UserError(f"there is no setting {sorted(unknown)[0]!r}; choose from {', '.join(all_settings(options))}")
    return options


def all_settings(options: argparse.Namespace) -> dict[str, dict[str, str]]:
    """The environment of each setting, without the number of threads where that is not its point.

    That of `product` depends on what runs beside it at this moment.
    """
    product = {"OMP_NUM_THREADS": str(options.threads)}  # it asks whether so many threads have their cores
    bound_spinning(product)
    product = {name: product[name] for name in RECORDS if name in product}
    found = {"torch's": {}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}}
    found |= {f"spin {count}": {"GOMP_SPINCOUNT": str(count)} for count in options.spins}
    return found | {"one thread": {"OMP_NUM_THREADS": "1"}, "product": product}


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
    """Tokens per second of `work`, which returns how many it has done.

    The first call is a warm-up. Where it alone takes longer than `seconds`, it is the measurement.
    """
    start = time.perf_counter()
    tokens = work()
    if (passed := time.perf_counter() - start) > seconds:
        return tokens / passed
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


Figures = dict[int, dict[str, dict[str, list[float]]]]  # neighbours → setting → part → tokens per second


def print_tables(options: argparse.Namespace, found: Figures) -> None:
    """Prints one table per part with medians, and one with the worst part of each setting."""
    fewest = min(options.neighbours)
    place = "free machine" if fewest == 0 else f"{fewest} neighbours"
    titles = [f"{place} | loss"] + [f"{count} neighbours | kept" for count in options.neighbours if count != fewest]
    worst: dict[str, list[float]] = {}
    for part in options.parts:
        print(f"\n| {part}, tokens per second, {options.threads} threads | {' | '.join(titles)} |")
        print("|---|" + "--:|--:|" * len(titles))
        reference = statistics.median(found[fewest][options.settings[0]][part])
        for name in options.settings:
            speeds = {count: statistics.median(found[count][name][part]) for count in found}
            shares = [1 - speeds[fewest] / reference]
            shares += [speeds[count] / reference for count in speeds if count != fewest]
            counts = [fewest] + [count for count in speeds if count != fewest]
            cells = [f"{speeds[count]:,.0f} | {share:.0%}" for count, share in zip(counts, shares, strict=True)]
            print(f"| {label(name)} | {' | '.join(cells)} |", flush=True)
            before = worst.get(name, shares)
            worst[name] = [max(before[0], shares[0]), *map(min, before[1:], shares[1:])]
    kept = [f"kept beside {count}" for count in options.neighbours if count != fewest]
    print(f"\n| worst of {', '.join(options.parts)} | {' | '.join([f'loss, {place}', *kept])} |")
    print("|---|" + "--:|" * len(titles))
    for name, shares in worst.items():
        print(f"| {label(name)} | {' | '.join(f'{share:.0%}' for share in shares)} |")


def label(name: str) -> str:
    """The setting's name in a table; those that the product sets are marked."""
    marks = {f"spin {SPINS}": " (product, free machine)", f"spin {BUSY_SPINS}": " (product, busy machine)"}
    return name + marks.get(name, "")


def main() -> None:
    options = parse_arguments()
    if options.measure:
        parts = measured_parts()
        seconds = options.seconds / len(options.parts)
        print(json.dumps({part: speed(parts[part], seconds) for part in options.parts}))
        return
    found: Figures = {count: {} for count in options.neighbours}
    for _ in range(options.rounds):
        for count in options.neighbours:
            for name in options.settings:
                with busy(count):
                    figures = measure_in_process(options, all_settings(options)[name])
                for part, value in figures.items():
                    found[count].setdefault(name, {}).setdefault(part, []).append(value)
                print(f"{count} neighbours, {name}: {figures}", file=sys.stderr, flush=True)
    print_tables(options, found)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if "--measure" in sys.argv:  # `run_main` would bound the spin
        main()
    else:
        run_main(main)
