"""Seconds that CORE and exams take: our evaluation beside upstream's.

    python benchmarks/evaluation.py                                          # the microworld's bundle, ours alone
    python benchmarks/evaluation.py --exams microworld-exam --tasks --upstream NANOCHAT_CHECKOUT   # exams alone
    python benchmarks/evaluation.py --core_bundle core --upstream NANOCHAT_CHECKOUT
    python benchmarks/evaluation.py --core_bundle core --upstream NANOCHAT_CHECKOUT --max_per_task 50 \\
        --tasks hellaswag piqa

Upstream's CORE reads all rows of one item per forward pass. Its exams (ARC, MMLU) read batches of --exam_batch items
in their order, and compute the logits of every position. --exams takes the tasks of `nanochat-hf evaluate chat`.

Both evaluate the same items with the same weights: those of one random model (--depth, --width), or of a checkpoint
folder of ours (--checkpoint). The random model's tokenizer is trained on the bundle's own text. The table has seconds
per task and the number of items on which the two agree. All must agree, except for ties within rounding.

The bound is the number of tokens in all rows, divided by the number of tokens when each beginning that the options of
an item share is read once. Logits at unscored positions, which only upstream computes, come on top of the bound. The
items of an exam share nothing; its bound is upstream's tokens with their padding, divided by those without.
--clock processor counts the processor seconds of this process, for machines that are busy with other work.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from benchmark_tools import UPSTREAM_HELP, HelpFormat, check_upstream, train_tokenizer, vocab_size_for

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf import tasks as chat_tasks
from nanochat_hf.evals import core
from nanochat_hf.evals.bundle import CoreTask, bundle_folder, load_bundle
from nanochat_hf.evals.evaluated_model import EvaluatedModel, load_evaluated_model
from nanochat_hf.evals.microworld_bundle import write_bundle
from nanochat_hf.evals.scoring import common_prefix
from nanochat_hf.evals.tasks import evaluate_choice
from nanochat_hf.generation import pick_device
from nanochat_hf.settings import UserError, run_main

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


class UpstreamTokenizer:
    """The methods of a tokenizer that upstream's evaluation calls, answered by ours."""

    def __init__(self, evaluated: EvaluatedModel):
        self.evaluated = evaluated

    def get_bos_token_id(self) -> int:
        return self.evaluated.tokenizer.bos_token_id

    def encode(self, letter: str) -> list[int]:
        return [self.evaluated.letter_id(letter)]

    def render_for_completion(self, example: dict[str, Any]) -> list[int]:
        return self.evaluated.prompt_ids(example["messages"][:-1])

    def __call__(self, texts: list[str], prepend: int) -> list[list[int]]:
        rows = self.evaluated.encode(texts)
        assert all(row[0] == prepend for row in rows)
        return rows


def texts_of_bundle(bundle: Path) -> Iterator[str]:
    """All strings in the items of a bundle."""

    def strings(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            for item in value:
                yield from strings(item)

    for path in sorted((bundle / "eval_data").rglob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            for value in json.loads(line).values() if line.strip() else ():
                yield from strings(value)


def make_model(args: argparse.Namespace) -> EvaluatedModel:
    """The checkpoint's model, or a random one with a tokenizer trained on the bundle's text."""
    if args.checkpoint:
        return load_evaluated_model(args.checkpoint, device=args.device)
    print("training a tokenizer on the bundle's text for the random model …", flush=True)
    tokenizer = train_tokenizer(texts_of_bundle(args.core_bundle), args.vocab_size)
    torch.manual_seed(0)
    config = NanochatHFConfig.from_depth(
        args.depth, vocab_size=args.vocab_size, sequence_length=args.max_length, aspect_ratio=args.width // args.depth
    )
    model = NanochatHFForCausalLM(config)
    with torch.no_grad():  # with nanochat's initialisation all tokens have the same logit, so every item is a tie
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return EvaluatedModel("random", model.to(pick_device(args.device)), tokenizer)


class UpstreamModel:
    """The model as upstream's evaluations call it."""

    def __init__(self, evaluated: EvaluatedModel, max_length: int):
        self.evaluated, self.max_seq_len = evaluated, max_length

    def get_device(self) -> torch.device:
        return self.evaluated.model.device

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        return self.evaluated.model(input_ids=ids, use_cache=False).logits


def upstream_outcomes(
    evaluated: EvaluatedModel, task: CoreTask, evaluate_example: Callable, max_length: int
) -> list[float]:
    """Outcomes of the same items by upstream's code, which does all but tokenizing and the forward pass."""

    meta = {"task_type": task.kind, "num_fewshot": task.num_fewshot, "continuation_delimiter": task.delimiter}
    device, tokenizer = evaluated.model.device, UpstreamTokenizer(evaluated)
    count = range(len(task.items))
    model = UpstreamModel(evaluated, max_length)
    return [float(evaluate_example(i, model, tokenizer, task.items, device, meta)) for i in count]


class UpstreamExam:
    """A task of ours as upstream's evaluation of exams takes it. It keeps the outcomes."""

    def __init__(self, task: Any):
        self.task, self.outcomes = task, list[float]()

    def __len__(self) -> int:
        return len(self.task)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.task[index]

    def evaluate(self, example: dict[str, Any], letter: str) -> bool:
        self.outcomes.append(float(self.task.score(example, letter)))
        return bool(self.outcomes[-1])


def exam_bound(evaluated: EvaluatedModel, task: Any, batch: int) -> float:
    """Tokens of a task's prompts in batches of so many, padding included, divided by the tokens of the prompts."""
    lengths = [len(evaluated.prompt_ids(task[index]["messages"][:-1])) for index in range(len(task))]
    groups = [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
    return sum(len(group) * max(group) for group in groups) / sum(lengths)


def tokens_of(evaluated: EvaluatedModel, task: CoreTask, max_length: int) -> tuple[int, int]:
    """Tokens of all rows of a task, and tokens when each shared beginning is read once per item."""
    whole = once = 0
    for group in core.spans_of_items(evaluated.encode, task, range(len(task.items))):
        rows = [span.crop(max_length).ids for span in group]
        shared = common_prefix(rows) if len(rows) > 1 else 0
        whole += sum(map(len, rows))
        once += sum(map(len, rows)) - shared * (len(rows) - 1)
    return whole, once


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormat)
    parser.add_argument("--core_bundle", default="microworld", help="core, downloaded, or a bundle's folder")
    parser.add_argument("--upstream", type=Path, help=UPSTREAM_HELP)
    parser.add_argument("--checkpoint", help="checkpoint folder; without it a random model")
    parser.add_argument("--tasks", nargs="*", help="labels of the bundle's tasks; without it all; alone: none")
    parser.add_argument("--exams", nargs="+", default=[], help="exams, such as microworld-exam or mmlu=DIR")
    parser.add_argument("--exam_batch", type=int, default=8, help="items per forward pass of upstream's exams")
    parser.add_argument("--max_per_task", type=int, default=20, help="items per task; -1 for all")
    parser.add_argument("--max_length", type=int, default=2048, help="context in tokens")
    parser.add_argument("--max_tokens", type=int, default=16384, help="padded tokens per forward pass, ours")
    parser.add_argument("--depth", type=int, default=4, help="layers of the random model")
    parser.add_argument("--width", type=int, default=256, help="hidden size of the random model")
    parser.add_argument("--vocab_size", type=int, help="of the random model; 4096, for the microworld 512")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--threads", type=int, help="threads of torch; default: its own choice")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="what is measured; processor: CPU work only")
    args = parser.parse_args()
    args.upstream = check_upstream(args.upstream, "nanochat/core_eval.py")
    args.vocab_size = vocab_size_for(args.core_bundle, args.vocab_size, 4096)
    return args


def measure_exams(args: argparse.Namespace, evaluated: EvaluatedModel, clock: Callable[[], float]) -> None:
    """Prints a line per exam."""
    run_exam = None
    if args.upstream and args.exams:
        from scripts.chat_eval import run_categorical_eval as run_exam
    limit = None if args.max_per_task < 0 else args.max_per_task
    for spec in args.exams:
        task, _ = chat_tasks.load(spec, "test", limit)
        bound = exam_bound(evaluated, task, args.exam_batch)
        started = clock()
        ours = evaluate_choice(evaluated, task, max_tokens=args.max_tokens).outcomes
        seconds = clock() - started
        line = f"{task.name:34} {len(ours):5d} {bound:6.2f} {seconds:8.2f}"
        if run_exam:
            exam = UpstreamExam(task)
            started = clock()
            with contextlib.redirect_stdout(io.StringIO()):  # it prints its own accuracy
                run_exam(
                    exam, UpstreamTokenizer(evaluated), UpstreamModel(evaluated, args.max_length), args.exam_batch
                )
            peer = clock() - started
            agree = sum(a == b for a, b in zip(ours, exam.outcomes, strict=True))
            line += f" {peer:12.2f} {peer / seconds:13.2f} {agree:5d}/{len(ours)}"
        print(line, flush=True)


def main() -> None:
    args = parse_arguments()
    evaluate_example = None
    if args.upstream:
        sys.path.insert(0, str(args.upstream))
        from nanochat.core_eval import evaluate_example
    with tempfile.TemporaryDirectory() as folder:
        built_in = args.core_bundle == "microworld"
        args.core_bundle = write_bundle(folder) if built_in else bundle_folder(args.core_bundle)
        tasks = []
        if args.tasks != []:
            tasks = load_bundle(args.core_bundle, max_per_task=args.max_per_task, labels=args.tasks)
        elif not args.exams:
            raise UserError("--tasks without labels measures no task of the bundle: give --exams, or leave it out")
        needed = max((task.num_fewshot for task in tasks), default=0) + 1
        if args.upstream and tasks and min(len(task.items) for task in tasks) < needed:
            raise UserError(
                f"upstream draws its few-shot examples from the items: give --max_per_task {needed} or more"
            )
        evaluated = make_model(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = CLOCKS[args.clock]
    print(
        f"{'task':34} {'items':>5} {'bound':>6} {'ours, s':>8} {'upstream, s':>12} {'times faster':>13} {'agree':>9}"
    )
    totals = {"whole": 0, "once": 0, "ours": 0.0, "upstream": 0.0}
    for task in tasks:
        whole, once = tokens_of(evaluated, task, args.max_length)
        started = clock()
        options = {"max_length": args.max_length, "max_tokens": args.max_tokens}
        ours = core.evaluate_task(evaluated.model, evaluated.encode, task, **options).outcomes
        seconds = clock() - started
        for name, value in (("whole", whole), ("once", once), ("ours", seconds)):
            totals[name] += value
        line = f"{task.label:34} {len(ours):5d} {whole / once:6.2f} {seconds:8.2f}"
        if evaluate_example:
            started = clock()
            theirs = upstream_outcomes(evaluated, task, evaluate_example, args.max_length)
            peer = clock() - started
            totals["upstream"] += peer
            agree = sum(a == b for a, b in zip(ours, theirs, strict=True))
            line += f" {peer:12.2f} {peer / seconds:13.2f} {agree:5d}/{len(ours)}"
        print(line, flush=True)
    measure_exams(args, evaluated, clock)
    if not tasks:
        return
    line = f"{'all of CORE':34} {'':5} {totals['whole'] / totals['once']:6.2f} {totals['ours']:8.2f}"
    if evaluate_example:
        line += f" {totals['upstream']:12.2f} {totals['upstream'] / totals['ours']:13.2f}"
    print(line)


if __name__ == "__main__":
    run_main(main)
