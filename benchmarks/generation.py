"""Sampled tokens per second: ours beside upstream's engine, a plain cached loop and transformers' `generate`.

    python benchmarks/generation.py                                  # ours, the plain loop and stock generate
    python benchmarks/generation.py --upstream NANOCHAT_CHECKOUT     # upstream's Engine too, with the same weights
    python benchmarks/generation.py --compile                        # ours with compiled steps too
    python benchmarks/generation.py --continuous                     # instead: what smear costs continuous batching
    python benchmarks/generation.py --device cuda --dtype bfloat16

All methods use the same random weights, one prompt, the same number of tokens and the same settings (temperature 1,
top-k 50). Rounds alternate between the methods, so that other load on the machine slows all of them. The table has
medians, also of each method's time divided by ours. Tool use is on, and no turn ends early: the random model's end
tokens are made unlikely.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmark_tools import UPSTREAM_HELP, HelpFormat, check_upstream
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.generation.decoding import decode_batch, pad_left
from nanochat_hf.generation.sampling import Sampling
from nanochat_hf.generation.tool_loop import ControlTokens, Turn
from nanochat_hf.settings import run_main

CONTROL = ("bos", "user_start", "user_end", "assistant_start", "assistant_end", "python_start", "python_end")
CONTROL += ("output_start", "output_end")
COLUMN = 22  # characters


class NoTokenizer:
    """Control tokens at the end of the vocabulary. Nothing is ever decoded, as the model never draws one of them."""

    def __init__(self, vocab_size: int):
        self.ids = {f"<|{name}|>": vocab_size - 9 + index for index, name in enumerate(CONTROL)}

    def convert_tokens_to_ids(self, names: list[str]) -> list[int]:
        return [self.ids[name] for name in names]

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        names = {token: name for name, token in self.ids.items()}
        return [names[token] for token in ids]

    def encode_special(self, name: str) -> int:  # upstream's method
        return self.ids[name]

    def get_bos_token_id(self) -> int:
        return self.ids["<|bos|>"]


def build_model(options: argparse.Namespace) -> NanochatHFForCausalLM:
    """A random model that never draws a control token."""
    config = NanochatHFConfig.from_depth(
        options.depth,
        vocab_size=options.vocab_size,
        head_dim=options.head_dim,
        sequence_length=options.sequence_length,
        preset=options.preset,
    )
    torch.manual_seed(0)
    model = NanochatHFForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02)
        model.lm_head.weight[-9:] = 0  # control tokens never reach the top 50
        model.lm_head.weight[:-9] *= 5
    return model.to(options.device, options.dtype).eval()


def ours(
    model: Any, tokenizer: NoTokenizer, prompt: list[int], samples: int, length: int, compiled: bool = False
) -> None:
    """This project's own generation with tools."""
    control = ControlTokens.from_tokenizer(tokenizer)
    turns = [Turn(control, tokenizer, length) for _ in range(samples)]
    generator = torch.Generator(device=model.device).manual_seed(1)
    settings = Sampling(max_new_tokens=length, top_k=50)
    for _ in decode_batch(model, [prompt], turns, [0] * samples, settings, generator, compiled=compiled):
        pass
    assert all(len(turn.token_ids) == length for turn in turns)


@torch.inference_mode()
def plain_loop(model: Any, prompt: list[int], samples: int, length: int) -> None:
    """The loop one would write first: a cache, one forward pass per token, top-k and multinomial."""
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([prompt] * samples, device=model.device)
    for _ in range(length):
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1]
        values, tokens = logits.topk(50)
        ids = tokens.gather(1, torch.multinomial(values.softmax(-1), 1))


def stock_generate(model: Any, prompt: list[int], samples: int, length: int) -> None:
    """`generate` of transformers."""
    ids = torch.tensor([prompt], device=model.device)
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        top_k=50,
        num_return_sequences=samples,
        min_new_tokens=length,
        max_new_tokens=length,
        pad_token_id=0,
    )


def upstream_engine(path: Path, model: Any, tokenizer: NoTokenizer, options: argparse.Namespace) -> Callable:
    """Upstream's Engine over upstream's model with our weights."""
    import os

    os.environ.setdefault("NANOCHAT_DTYPE", options.dtype_name)
    sys.path.insert(0, str(path))
    from nanochat.engine import Engine
    from nanochat.gpt import GPT, GPTConfig

    from nanochat_hf.conversion import to_upstream

    state, config = to_upstream(model)
    with torch.device("meta"):
        theirs = GPT(GPTConfig(**config))
    theirs.to_empty(device=options.device)
    theirs.init_weights()
    theirs.load_state_dict(state, strict=True)
    theirs.to(model.dtype).eval()
    engine = Engine(theirs, tokenizer)
    ids = torch.tensor([list(range(40))], device=options.device)
    with torch.inference_mode():
        gap = (theirs(ids)[..., : options.vocab_size].float() - model(ids).logits).abs().max().item()
    print(f"same weights: the largest difference between a logit of ours and of upstream's is {gap:.1e}")

    def run(prompt: list[int], samples: int, length: int) -> None:
        for _ in engine.generate(prompt, num_samples=samples, max_tokens=length, temperature=1.0, top_k=50):
            pass

    return run


def measure_continuous(model: Any, options: argparse.Namespace, sync: Callable) -> None:
    """Requests of different lengths: `generate_batch`, the same without smear, and `generate` on the padded batch."""
    without = copy.deepcopy(model)
    without.config.smear = False
    lengths = [options.prompt - 3 * index % options.prompt for index in range(max(options.samples))]
    prompts = [torch.randint(0, options.vocab_size - 9, (length,)).tolist() for length in lengths]
    ids, mask = pad_left(prompts, 0, model.device)
    settings = GenerationConfig(max_new_tokens=options.tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    page = 32
    pages = sum(-(-(length + options.tokens) // page) for length in lengths)
    paged = ContinuousBatchingConfig(num_blocks=2 * pages, page_size=page, max_batch_tokens=512)

    def batch(model: Any) -> list[list[int]]:
        outputs = model.generate_batch(prompts, generation_config=settings, continuous_batching_config=paged)
        return [output.generated_tokens for output in outputs.values()]

    methods = {
        "continuous": lambda: batch(model),
        "without smear": lambda: batch(without),
        "stock generate": lambda: model.generate(ids, attention_mask=mask, generation_config=settings),
    }
    assert methods["continuous"]() == methods["stock generate"]()[:, ids.shape[1] :].tolist()
    timed = {name: lambda *_, run=run: run() for name, run in methods.items()}
    print_rows(measure(timed, [], 0, 0, options.rounds, sync), len(prompts), options.tokens, ["continuous"])


def measure(
    methods: dict[str, Callable], prompt: list[int], samples: int, length: int, rounds: int, sync: Callable
) -> dict[str, list[float]]:
    """Seconds of each method in each round, after one warm-up round. The methods alternate within a round."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(rounds + 1):
        for name, method in methods.items():
            sync()
            start = time.perf_counter()
            method(prompt, samples, length)
            sync()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def print_rows(seconds: dict[str, list[float]], samples: int, length: int, ours: list[str]) -> None:
    """Prints one row per method: median speed, and the median over rounds of its time divided by each of ours."""
    for name, values in seconds.items():
        middle = statistics.median(values)
        cells = f"{name:20s} {samples:8d} {samples * length / middle:13.0f} {1000 * middle / length:12.2f}"
        for mine in ours:
            times = statistics.median(one / other for one, other in zip(values, seconds[mine], strict=True))
            cells += f" {times:{COLUMN}.2f}"
        print(cells, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormat)
    parser.add_argument("--upstream", type=Path, help=UPSTREAM_HELP)
    parser.add_argument("--depth", type=int, default=6, help="layers; the hidden size is 64 × depth")
    parser.add_argument("--head-dim", type=int, default=64, help="width of an attention head")
    parser.add_argument("--vocab-size", type=int, default=8192, help="a multiple of 64")
    parser.add_argument("--sequence-length", type=int, default=1024, help="the model's context in tokens")
    parser.add_argument("--preset", default="modern", choices=("modern", "classic"), help="architecture")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens sampled per sample")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 16], help="numbers of samples of the prompt")
    parser.add_argument("--compile", action="store_true", help="measure compiled steps too, without compiling time")
    parser.add_argument("--continuous", action="store_true", help="measure continuous batching instead")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one warm-up round")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", dest="dtype_name", default="float32", help="float32 or bfloat16")
    options = parser.parse_args()
    if not options.continuous:
        options.upstream = check_upstream(options.upstream, "nanochat/engine.py")
    options.dtype = getattr(torch, options.dtype_name)
    return options


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)

    model, tokenizer = build_model(options), NoTokenizer(options.vocab_size)
    methods: dict[str, Callable] = {
        "ours": lambda *arguments: ours(model, tokenizer, *arguments),
        "plain cached loop": lambda *arguments: plain_loop(model, *arguments),
        "stock generate": lambda *arguments: stock_generate(model, *arguments),
    }
    if options.upstream and not options.continuous:
        methods["upstream's engine"] = upstream_engine(options.upstream, model, tokenizer, options)
    if options.compile:
        methods["ours, compiled"] = lambda *arguments: ours(model, tokenizer, *arguments, compiled=True)
    prompt = torch.randint(0, options.vocab_size - 9, (options.prompt,)).tolist()
    sync = torch.cuda.synchronize if options.device.startswith("cuda") else lambda: None
    lengths = f"{options.prompt} prompt tokens, {options.tokens} sampled tokens"
    print(f"depth {options.depth}, {lengths}, {options.dtype_name}, {options.device}")
    mine = ["continuous"] if options.continuous else [name for name in methods if name.startswith("ours")]
    heads = " ".join(f"{f'time ÷ {name}':>{COLUMN}}" for name in mine)
    print(f"{'method':20s} {'samples':>8s} {'tokens per s':>13s} {'ms per step':>12s} {heads}")
    if options.continuous:
        return measure_continuous(model, options, sync)
    for samples in options.samples:
        seconds = measure(methods, prompt, samples, options.tokens, options.rounds, sync)
        print_rows(seconds, samples, options.tokens, mine)


if __name__ == "__main__":
    run_main(main)
