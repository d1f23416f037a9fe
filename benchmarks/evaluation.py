"""CORE: our batched evaluation beside nanochat's one item a forward pass, same weights, same items.

    python benchmarks/evaluation.py --core_bundle eval_bundle --upstream PATH_OF_A_NANOCHAT_CHECKOUT
    python benchmarks/evaluation.py --core_bundle eval_bundle --upstream PATH --max_per_task 50 --tasks hellaswag piqa

Both evaluate one random model (`--depth`, `--width`) or a checkpoint folder of ours (`--checkpoint`). The table gives
seconds a task and in how many items the two agree, which must be all but for ties within rounding.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.evals import core
from nanochat_hf.evals.evaluated_model import EvaluatedModel, load_evaluated_model
from nanochat_hf.generation import pick_device


class UpstreamTokenizer:
    """What nanochat's evaluation asks of a tokenizer, answered by ours."""

    def __init__(self, subject: EvaluatedModel):
        self.subject = subject

    def get_bos_token_id(self) -> int:
        return self.subject.tokenizer.bos_token_id

    def __call__(self, texts: list[str], prepend: int) -> list[list[int]]:
        rows = self.subject.encode(texts)
        assert all(row[0] == prepend for row in rows)
        return rows


def make_subject(args: argparse.Namespace) -> EvaluatedModel:
    if args.checkpoint:
        return load_evaluated_model(args.checkpoint, device=args.device)
    from itertools import islice

    from nanochat_hf import tokenizer as tokenizers
    from nanochat_hf.data.sources import open_documents

    print("training a tokenizer on the built-in data for the random model …")
    tokenizer = tokenizers.train(list(islice(open_documents("microworld", "train"), 2000)), args.vocab_size)
    torch.manual_seed(0)
    config = NanochatHFConfig.from_depth(
        args.depth, vocab_size=args.vocab_size, sequence_length=args.max_length, aspect_ratio=args.width // args.depth
    )
    model = NanochatHFForCausalLM(config)
    with torch.no_grad():  # nanochat's own initialisation gives every token the same logit: nothing to compare
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return EvaluatedModel("random", model.to(pick_device(args.device)), tokenizer)


def theirs(subject: EvaluatedModel, task: core.CoreTask, evaluate_example, max_length: int) -> list[float]:
    """nanochat's evaluation of the same items; its own code does everything but the forward pass and the tokens."""

    class Model:
        max_seq_len = max_length

        def __call__(self, ids: torch.Tensor) -> torch.Tensor:
            return subject.model(input_ids=ids, use_cache=False).logits

    meta = {"task_type": task.kind, "num_fewshot": task.num_fewshot, "continuation_delimiter": task.delimiter}
    device, tokenizer = subject.model.device, UpstreamTokenizer(subject)
    count = range(len(task.items))
    return [float(evaluate_example(i, Model(), tokenizer, task.items, device, meta)) for i in count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core_bundle", required=True, help="folder of nanochat's eval_bundle")
    parser.add_argument("--upstream", help="a checkout of nanochat; without it only ours is timed")
    parser.add_argument("--checkpoint", help="checkpoint folder; default a random model")
    parser.add_argument("--tasks", nargs="+", help="labels; default all")
    parser.add_argument("--max_per_task", type=int, default=20)
    parser.add_argument("--max_length", type=int, default=2048)
    parser.add_argument("--max_tokens", type=int, default=16384)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab_size", type=int, default=4096)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()

    evaluate_example = None
    if args.upstream:
        sys.path.insert(0, str(Path(args.upstream)))
        from nanochat.core_eval import evaluate_example
    subject = make_subject(args)
    print(f"{'task':34} {'items':>5} {'ours s':>8} {'theirs s':>9} {'factor':>7} {'agree':>9}")
    total = [0.0, 0.0]
    for task in core.load_bundle(args.core_bundle, max_per_task=args.max_per_task, labels=args.tasks):
        started = time.perf_counter()
        options = {"max_length": args.max_length, "max_tokens": args.max_tokens}
        ours = core.evaluate_task(subject.model, subject.encode, task, **options).outcomes
        seconds = time.perf_counter() - started
        total[0] += seconds
        line = f"{task.label:34} {len(ours):5d} {seconds:8.2f}"
        if evaluate_example:
            started = time.perf_counter()
            other = theirs(subject, task, evaluate_example, args.max_length)
            took = time.perf_counter() - started
            total[1] += took
            agree = sum(a == b for a, b in zip(ours, other, strict=True))
            line += f" {took:9.2f} {took / seconds:6.1f}x {agree:4d}/{len(ours)}"
        print(line, flush=True)
    ratio = f" {total[1]:9.2f} {total[1] / total[0]:6.1f}x" if evaluate_example else ""
    print(f"{'all':34} {'':5} {total[0]:8.2f}{ratio}")


if __name__ == "__main__":
    main()
