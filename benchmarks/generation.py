"""How fast tokens are sampled: ours beside upstream's engine, a plain cached loop and transformers' `generate`.

    python benchmarks/generation.py                                  ours, the plain loop and stock generate
    python benchmarks/generation.py --upstream PATH_TO_NANOCHAT      upstream's Engine too, with the same weights
    python benchmarks/generation.py --compile                        ours with compiled steps too
    python benchmarks/generation.py --continuous                     what smear costs continuous batching, instead
    python benchmarks/generation.py --device cuda --dtype bfloat16

All methods draw from the same weights, for the same number of tokens, at the same settings (temperature 1, top-k 50),
with one prompt. Rounds alternate between the methods, so that a busy machine slows all of them; the table has medians,
of the ratio to ours too. Tool use is on, and no turn can end early (the random model's end tokens are pushed down).
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.generation.decoding import decode_batch, pad_left
from nanochat_hf.generation.sampling import Sampling
from nanochat_hf.generation.tool_loop import ControlTokens, Turn

CONTROL = ("bos", "user_start", "user_end", "assistant_start", "assistant_end", "python_start", "python_end")
CONTROL += ("output_start", "output_end")


class NoTokenizer:
    """Control tokens at the end of the vocabulary; nothing is ever decoded, for the model never says one."""

    def __init__(self, vocab_size: int):
        self.ids = {f"<|{name}|>": vocab_size - 9 + index for index, name in enumerate(CONTROL)}

    def convert_tokens_to_ids(self, names: list[str]) -> list[int]:
        return [self.ids[name] for name in names]

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        names = {token: name for name, token in self.ids.items()}
        return [names[token] for token in ids]

    def encode_special(self, name: str) -> int:  # upstream's name for it
        return self.ids[name]

    def get_bos_token_id(self) -> int:
        return self.ids["<|bos|>"]


def build_model(options: argparse.Namespace) -> NanochatHFForCausalLM:
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
        model.lm_head.weight[-9:] = 0  # control tokens: never likely enough for the 50 best
        model.lm_head.weight[:-9] *= 5
    return model.to(options.device, options.dtype).eval()


def ours(
    model: Any, tokenizer: NoTokenizer, prompt: list[int], samples: int, length: int, compiled: bool = False
) -> None:
    control = ControlTokens.from_tokenizer(tokenizer)
    turns = [Turn(control, tokenizer, length) for _ in range(samples)]
    generator = torch.Generator(device=model.device).manual_seed(1)
    settings = Sampling(max_new_tokens=length, top_k=50)
    for _ in decode_batch(model, [prompt], turns, [0] * samples, settings, generator, compiled=compiled):
        pass
    assert all(len(turn.token_ids) == length for turn in turns)


@torch.inference_mode()
def plain_loop(model: Any, prompt: list[int], samples: int, length: int) -> None:
    """What one would write down first: a cache, a forward a token, top-k and multinomial."""
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([prompt] * samples, device=model.device)
    for _ in range(length):
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1]
        values, tokens = logits.topk(50)
        ids = tokens.gather(1, torch.multinomial(values.softmax(-1), 1))


def stock_generate(model: Any, prompt: list[int], samples: int, length: int) -> None:
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


def upstream_engine(path: str, model: Any, tokenizer: NoTokenizer, options: argparse.Namespace) -> Callable:
    """Upstream's Engine over upstream's model with our weights."""
    import os

    os.environ.setdefault("NANOCHAT_DTYPE", options.dtype_name)
    sys.path.insert(0, path)
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
    print(f"same weights: the largest difference of a logit to upstream's is {gap:.1e}")

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
    """Seconds of each method in alternating rounds, after one to warm up."""
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
    """A row a method, with medians: of its speed, and over the rounds of its time divided by that of each of ours."""
    for name, values in seconds.items():
        middle = statistics.median(values)
        cells = f"{name:20s} {samples:8d} {samples * length / middle:10.0f} {1000 * middle / length:9.2f}"
        for mine in ours:
            times = statistics.median(one / other for one, other in zip(values, seconds[mine], strict=True))
            cells += f" {times:{len(mine) + 3}.2f}x"
        print(cells, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", help="checkout of nanochat (July 2026)")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--preset", default="modern", choices=("modern", "classic"))
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens sampled")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 16], help="samples of the prompt")
    parser.add_argument("--compile", action="store_true", help="measure compiled steps as well, when compiled")
    parser.add_argument("--continuous", action="store_true", help="measure continuous batching instead")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", dest="dtype_name", default="float32")
    options = parser.parse_args()
    options.dtype = getattr(torch, options.dtype_name)
    torch.set_num_threads(options.threads)

    model, tokenizer = build_model(options), NoTokenizer(options.vocab_size)
    methods: dict[str, Callable] = {
        "ours": lambda *arguments: ours(model, tokenizer, *arguments),
        "plain cached loop": lambda *arguments: plain_loop(model, *arguments),
        "stock generate": lambda *arguments: stock_generate(model, *arguments),
    }
    if options.upstream:
        methods["upstream's engine"] = upstream_engine(options.upstream, model, tokenizer, options)
    if options.compile:
        methods["ours, compiled"] = lambda *arguments: ours(model, tokenizer, *arguments, compiled=True)
    prompt = torch.randint(0, options.vocab_size - 9, (options.prompt,)).tolist()
    sync = torch.cuda.synchronize if options.device.startswith("cuda") else lambda: None
    print(f"depth {options.depth}, {options.prompt} + {options.tokens} tokens, {options.dtype_name}, {options.device}")
    mine = ["continuous"] if options.continuous else [name for name in methods if name.startswith("ours")]
    heads = " ".join(f"{name} is" for name in mine)
    print(f"{'method':20s} {'samples':>8s} {'tokens/s':>10s} {'ms/step':>9s}  {heads}")
    if options.continuous:
        return measure_continuous(model, options, sync)
    for samples in options.samples:
        seconds = measure(methods, prompt, samples, options.tokens, options.rounds, sync)
        print_rows(seconds, samples, options.tokens, mine)


if __name__ == "__main__":
    main()
