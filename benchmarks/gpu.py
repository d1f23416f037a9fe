"""Ten minutes on one GPU: what of this package works there, how fast, and how far from exact.

    python benchmarks/gpu.py --output OUT                           # all checks, at most 560 seconds
    python benchmarks/gpu.py --output OUT --text DATA_FOLDER        # the last check trains on a folder of parquet
    python benchmarks/gpu.py --output OUT --only d24_fp8 d24_bf16   # some checks
    python benchmarks/gpu.py --output OUT --only text --text DATA_FOLDER --budget 240
    python benchmarks/gpu.py --output OUT --dry                     # the same code in miniature on a CPU

Run it in the root of the repository. It needs no network and no earlier run. Each check is a process of its own with a
time limit, so a failure ends that check only. The most important checks come first. Each one prints one line of JSON.
At the end there is a table. The same is in OUT/results.jsonl and OUT/gpu.md. The exit status is 1 if a check failed
or missed what is expected. A check whose package is missing says so and does not count as failed.

A machine without network needs three things beside the repository's files:

1. The Rust extension inside nanochat_hf/. On a machine with Rust and the same kind of processor:

       make wheel && unzip -o dist/nanochat_hf-*.whl 'nanochat_hf/_rustbpe*' -d .

2. Wheels of what is missing there, for its Python. torchao is for the 8-bit checks. trl, datasets, dill, multiprocess
   and xxhash are for SFT and RL. accelerate, psutil, pyarrow and matplotlib are for pretraining:

       pip download --no-deps --only-binary=:all: --python-version 3.12 --dest wheels \\
           torchao 'trl>=1.16,<1.17' datasets 'dill<0.4.2' 'multiprocess<0.70.20' xxhash

3. For the last check a folder of parquet files with text, at least two. Without it the microworld is used.

There, with an empty folder OUT, git's ignored file nanochat_hf/_rustbpe.abi3.so and the folder wheels carried along:

       python3 -m pip install --quiet --no-index --no-deps --target site wheels/*.whl
       PYTHONPATH=site python3 benchmarks/gpu.py --output OUT
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
if importlib.util.find_spec("nanochat_hf") is None:  # the repository need not be installed
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
from benchmark_tools import HelpFormat  # noqa: E402

from nanochat_hf.settings import UserError, run_main  # noqa: E402

LEAST_SECONDS = 25  # a check is not begun with less
COUNT_SYNCHRONIZATIONS = "NANOCHAT_HF_COUNT_SYNCHRONIZATIONS"  # environment variable
RAISES = "raises "  # begins the value of a measurement that failed
SAMPLE = re.compile(r"^.*?(step \d+: ['\"].*['\"])$", re.MULTILINE)


# -- checks: what they are -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """A check: its function, its time limit in seconds, the packages it needs, and what one expects of it."""

    run: Callable[["Results"], None]
    limit: int
    needs: tuple[str, ...]
    expected: str


CHECKS: dict[str, Check] = {}


def check(limit: int, expected: str, needs: Sequence[str] = ()) -> Callable:
    """Registers the function below as a check; the order of the file is the order of running."""

    def register(function: Callable[["Results"], None]) -> Callable:
        CHECKS[function.__name__] = Check(function, limit, ("torch", "transformers", *needs), expected)
        return function

    return register


class Results(dict):
    """The measurements of one check, by name. Each is written to a file at once, so that none is lost at a time limit.

    Attributes:
        dry: whether this is the miniature on a CPU.
        device: "cpu" or "cuda".
        scratch: a folder that all checks share.
        text: folder of text for the last check, or None.
        seconds: how long this check may take.
    """

    def __init__(self, name: str, options: argparse.Namespace):
        super().__init__()
        self.name, self.dry, self.device = name, options.dry, "cpu" if options.dry else "cuda"
        self.scratch, self.text, self.seconds = Path(options.scratch), options.text, options.seconds
        self.begun = time.monotonic()

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        (self.scratch / f"{self.name}.json").write_text(json.dumps(self, default=str))

    def measure(self, name: str, function: Callable[[], Any]) -> Any:
        """Calls the function and records what it returns, or that it raises."""
        try:
            self[name] = function()
            return self[name]
        except Exception as error:
            traceback.print_exc()
            self[name] = f"{RAISES}{type(error).__name__}: {' '.join(str(error).split())[:240]}"
            return None

    def expect(self, holds: bool, sentence: str) -> None:
        """Records a sentence on what was expected and did not happen."""
        if not holds:
            self["not as expected"] = [*self.get("not as expected", []), sentence]


# -- helpers of the checks -------------------------------------------------------------------------------------------


def synchronize(results: Results) -> None:
    import torch

    if not results.dry:
        torch.cuda.synchronize()


def milliseconds(results: Results, function: Callable[[], Any], repeats: int = 10) -> float:
    """Mean time of a call in ms, after three calls to warm up (one call each in the miniature)."""
    repeats, warmup = (1, 1) if results.dry else (repeats, 3)
    for _ in range(warmup):
        function()
    synchronize(results)
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    synchronize(results)
    return round((time.perf_counter() - start) / repeats * 1e3, 3)


def kernels(results: Results, function: Callable[[], Any], top: int = 6) -> list[str]:
    """The kernels that take most of a call: "ms, calls, name"; on a CPU the operators."""
    from torch.profiler import ProfilerActivity, profile

    activity = ProfilerActivity.CPU if results.dry else ProfilerActivity.CUDA
    with profile(activities=[activity]) as profiler:
        function()
        synchronize(results)

    def own_time(event: Any) -> float:
        return event.self_cpu_time_total if results.dry else event.self_device_time_total

    rows = sorted(profiler.key_averages(), key=own_time, reverse=True)[:top]
    return [f"{own_time(row) / 1e3:.3f} ms, {row.count} ×, {row.key[:70]}" for row in rows]


def peak_gb(results: Results) -> float:
    import torch

    return 0.0 if results.dry else round(torch.cuda.max_memory_allocated() / 1e9, 1)


def new_model(results: Results, depth: int, **shape: Any) -> Any:
    """A new model with fp32 weights on the device: of this depth, in the miniature of depth 2 and width 128."""
    import torch

    from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM

    if results.dry:
        depth, shape = 2, {"vocab_size": 512, "head_dim": 32, "sequence_length": 128}
    torch.manual_seed(0)
    with torch.device(results.device):
        return NanochatHFForCausalLM(NanochatHFConfig.from_depth(depth, **shape))


def scatter_zeros(model: Any) -> None:
    """Gives the projections that begin at zero small weights; otherwise most gradients are zero."""
    import torch

    generator = torch.Generator(model.device).manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.normal_(std=0.02, generator=generator)


def in_training(results: Results, depth: int, fp8: bool = False) -> tuple[Any, Any, int]:
    """A model as Trainer prepares it for bf16, a micro-batch of 16 × 2,048 tokens, and its FLOPs per token."""
    import torch
    from accelerate import Accelerator

    from nanochat_hf.scaling import depth_dial
    from nanochat_hf.trainers import fp8 as fp8_training

    torch.set_float32_matmul_precision("high")
    model = new_model(results, depth)
    if fp8:
        fp8_training.convert(model, emulate=results.dry)
    flops = depth_dial(depth).flops_per_token
    model = Accelerator(mixed_precision="bf16", cpu=results.dry).prepare_model(model, evaluation_mode=True).train()
    rows, length = 1 if results.dry else 16, model.config.max_position_embeddings
    return model, torch.randint(0, model.config.vocab_size, (rows, length), device=results.device), flops


def loss_of(model: Any, ids: Any) -> Any:
    return model(input_ids=ids, shift_labels=ids, use_cache=False).loss


def varlen(results: Results, window: tuple[int, int]) -> Callable:
    """Attention by torch's `varlen_attn`, from and to [B, H, T, D]; on a CPU a stand-in takes the same call."""
    import inspect

    import torch
    from torch.nn.attention.varlen import varlen_attn

    def stand_in(query, key, value, starts, *_, scale=None, **__):
        rows = [part.unflatten(0, (len(starts) - 1, -1)).transpose(1, 2) for part in (query, key, value)]
        steps = torch.arange(rows[0].shape[2])
        behind = steps[:, None] - steps
        seen = (behind >= 0) & (behind <= window[0]) if window[0] >= 0 else behind >= 0
        output = torch.nn.functional.scaled_dot_product_attention(*rows, attn_mask=seen, scale=scale)
        return output.transpose(1, 2).flatten(0, 1)

    def attend(query, key, value, *_, scale=None, **__):
        rows, heads, length, channels = query.shape
        starts = torch.arange(0, (rows + 1) * length, length, device=query.device, dtype=torch.int32)
        flat = [part.transpose(1, 2).reshape(rows * length, -1, channels) for part in (query, key, value)]
        call = stand_in if results.dry else varlen_attn
        output = call(*flat, starts, starts, length, length, scale=scale, window_size=window)
        return output.view(rows, length, heads, channels).transpose(1, 2)

    inspect.signature(varlen_attn).bind(*range(7), scale=None, window_size=window)  # TypeError names what is missing
    return attend


class EndlessTurn:
    """A turn that ends at its length only: random models would stop early, and call tools."""

    def __init__(self, max_tokens: int):
        self.max_tokens, self.count, self.finish_reason = max_tokens, 0, None

    def add(self, token: int) -> int:
        self.count += 1
        self.finish_reason = "length" if self.count >= self.max_tokens else None
        return token


def decoding_speed(results: Results, model: Any, rows: int, steps: str) -> str:
    """Samples tokens after one prompt, twice, and times the second time.

    Args:
        steps: "eager", "graphed" (CUDA graphs, what users get) or "compiled".
    """
    from nanochat_hf.generation import decoding
    from nanochat_hf.generation.fast_decoder import FastDecoder
    from nanochat_hf.generation.sampling import Sampling

    rows, prompt, length = (min(rows, 3), 8, 4) if results.dry else (rows, 64, 64)
    eagerly = mock.patch.object(decoding, "GraphedDecoder", FastDecoder) if steps == "eager" else nullcontext()
    for _ in range(2):
        turns = [EndlessTurn(length) for _ in range(rows)]
        synchronize(results)
        start = time.perf_counter()
        with eagerly:
            batch = [list(range(prompt))], turns, [0] * rows, Sampling(top_k=50)
            for _ in decoding.decode_batch(model, *batch, compiled=steps == "compiled"):
                pass
        synchronize(results)
        seconds = time.perf_counter() - start
    return f"{rows * length / seconds:,.0f} tokens/s, {seconds / length * 1e3:.2f} ms per step"


def graphs_agree(results: Results, model: Any) -> float:
    """Returns the largest difference of logits between graphed and eager steps, over slots that fill up."""
    import torch

    from nanochat_hf.generation.fast_decoder import FastDecoder
    from nanochat_hf.generation.graphed_decoder import GraphedDecoder

    length = 8 if results.dry else 300
    ids = torch.arange(48, device=results.device).view(3, 16)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    with torch.inference_mode():
        decoders = [kind(model, 16 + length) for kind in (GraphedDecoder, FastDecoder)]
        ours, theirs = (decoder.prefill(ids, mask, range(3)) for decoder in decoders)
        gap = 0.0
        for _ in range(length):
            tokens = theirs.argmax(-1)
            ours, theirs = (decoder.step(tokens) for decoder in decoders)
            gap = max(gap, float((ours - theirs).abs().max()))
    if not results.dry:
        results.expect(decoders[0].replay is not None, "no graph was captured")
    return round(gap, 4)


def server_speed(results: Results, model: Any) -> str:
    """Times steps of the server's batch, kernel by kernel and as CUDA graphs, and compares their logits."""
    import torch

    from nanochat_hf.generation.live_batch import GraphedLiveBatch, LiveBatch

    rows, length = (3, 4) if results.dry else (32, 64)
    prompts = [list(range(8 + row)) for row in range(rows)]
    batches = {"eager": LiveBatch(model, 256), "graphed": GraphedLiveBatch(model, 256)}
    found, seconds = {}, {}
    for name, batch in batches.items():
        logits, start = [batch.add(prompts, [1] * rows)], time.perf_counter()
        for step in range(2 * length):
            if step == length:
                synchronize(results)
                start = time.perf_counter()
            logits.append(batch.step([(7 * step + row) % 256 for row in range(rows)]))
        synchronize(results)
        found[name], seconds[name] = torch.stack(logits), time.perf_counter() - start
    gap = float((found["eager"] - found["graphed"]).abs().max())
    results.expect(gap < 0.1, "the server's graphed steps differ from eager ones")
    if not results.dry:
        results.expect(batches["graphed"].replay is not None, "no graph of the server's step was captured")
    speeds = [f"{name} {rows * length / spent:,.0f} tokens/s" for name, spent in seconds.items()]
    return f"{', '.join(speeds)}; logits differ by at most {gap:.4f}"


def script(results: Results, path: str, *arguments: Any, seconds: float | None = None) -> dict[str, Any]:
    """Runs a script of this repository in a process of its own.

    Args:
        seconds: the script gets SIGTERM after so many seconds, which training answers with a checkpoint.

    Returns:
        `status`, `output`, and from the compiler `graph_breaks` (reason → count), `recompiles` (places) and
        `synchronizations` (place → count).

    Raises:
        RuntimeError: the script failed; the message has the end of its output.
    """
    words, log = [str(word) for word in arguments], results.scratch / f"{results.name}-{Path(path).stem}.log"
    facts = log.with_suffix(".json")
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--script", path, "--facts", str(facts), *words]
    fork = results.dry and path != "training/tokenizer.py"  # the miniature tries the real way once
    pid = start_process(lambda: run_script(path, words, facts), None if fork else command, log)
    status = wait_for(pid, seconds, patience=60)
    output = log.read_text(errors="replace")
    if status not in (0, 128 + signal.SIGTERM):
        raise RuntimeError(f"{path} ended with status {status}: {' '.join(output.split())[-400:]}")
    recompiles = [
        f"{name} in {place.split('site-packages/')[-1].removeprefix(f'{ROOT}/')}"
        for name, place in re.findall(r"Recompiling function (\S+) in (\S+)", output)
    ]
    found = json.loads(facts.read_text()) if facts.exists() else {}
    return {"status": status, "output": output, "recompiles": recompiles} | found


def run_script(path: str, words: list[str], facts: Path) -> None:
    """Runs a script inside this process, and writes down what the compiler and the device had to say."""
    import torch
    from torch._dynamo.utils import counters

    places: Counter[str] = Counter()
    shown = warnings.showwarning

    def count(message, category, filename, lineno, *rest):
        if "synchronizing CUDA operation" in str(message):
            places[f"{filename.removeprefix(f'{ROOT}/')}:{lineno}"] += 1
        else:
            shown(message, category, filename, lineno, *rest)

    warnings.showwarning = count
    warnings.filterwarnings("always", message=".*synchronizing CUDA operation.*")
    if os.environ.get(COUNT_SYNCHRONIZATIONS) and torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("warn")
    torch._logging.set_logs(recompiles=True, graph_breaks=True)
    sys.argv = [path, *words]
    try:
        runpy.run_path(str(ROOT / path), run_name="__main__")
    finally:
        breaks = {" ".join(str(reason).split())[:160]: number for reason, number in counters["graph_break"].items()}
        found = {"graph_breaks": breaks, "graphs": counters["stats"].get("unique_graphs", 0)}
        facts.write_text(json.dumps(found | {"synchronizations": dict(places.most_common(8))}))


def history_of(folder: Path) -> list[dict[str, Any]]:
    """What a training stage logged: from `run.json`, or from the newest checkpoint of a stopped run."""
    finished = folder / "run.json"
    if finished.exists():
        return json.loads(finished.read_text())["history"]
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name[11:]))
    return json.loads(states[-1].read_text())["log_history"] if states else []


def column(history: list[dict[str, Any]], name: str, digits: int = 4) -> list[float]:
    return [round(row[name], digits) for row in history if name in row]


def tokenizer_folder(results: Results, data: str = "microworld", vocab_size: int = 512) -> Path:
    folder = results.scratch / f"tokenizer-{vocab_size}"
    if not (folder / "run.json").exists():
        size = ["--vocab_size", vocab_size, "--max_chars", 300_000 if results.dry else 50_000_000]
        script(results, "training/tokenizer.py", "--output_dir", folder, "--data", data, *size)
    return folder


def pretraining_run(results: Results, folder: Path, steps: int) -> dict[str, Any]:
    """The user's command on the microworld: compiled, in bf16, with evaluations, samples and checkpoints."""
    if results.dry:
        shape = ["--depth", 2, "--aspect_ratio", 32, "--head_dim", 32, "--sequence_length", 64]
        shape += ["--device_batch_size", 4, "--total_batch_size", 512, "--eval_tokens", 1024, "--log_every", 1]
    else:
        shape = ["--depth", 6, "--sequence_length", 1024, "--device_batch_size", 16]
        shape += ["--total_batch_size", 32768, "--eval_tokens", 65536, "--log_every", 5]
    every = ["--eval_every", steps // 2, "--save_every", steps // 2, "--save_total_limit", 3, "--sample_every", steps]
    where = ["--tokenizer", tokenizer_folder(results), "--data", "microworld", "--output_dir", folder]
    run = ["--num_iterations", steps, "--dtype", "bfloat16", "--compile", "true", "--spike_threshold", 0]
    return script(results, "training/pretrain.py", *where, *shape, *every, *run)


def base_folder(results: Results) -> Path:
    """The base model that the check `pretrain` leaves; made here where that check did not run."""
    folder = results.scratch / "base"
    if not (folder / "run.json").exists():
        pretraining_run(results, folder, 2)
    return folder


def chat_dtype(results: Results) -> list[str]:
    """The option that gives a chat stage bf16 on a CPU too; on GPUs bf16 is the default."""
    from nanochat_hf.trainers.stage import StageConfig

    if "dtype" in StageConfig.__dataclass_fields__:
        return ["--dtype", "bfloat16"]
    results["dtype"] = "the stage has no setting; bf16 on GPUs, fp32 on CPUs"
    return []


# -- the checks ------------------------------------------------------------------------------------------------------


@check(45, "everything present; matrix product near the card's peak; `varlen_attn` knows `window_size`")
def environment(results: Results) -> None:
    import importlib.metadata
    import inspect

    import torch

    names = ("torch", "triton", "transformers", "accelerate", "torchao", "trl", "datasets", "kernels", "flash-attn")
    for name in names:
        try:
            results[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            results[name] = "absent"
    results["python"] = platform.python_version()
    if not results.dry:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        results.measure("driver", lambda: subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0])
        results["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        results["memory_gb"] = round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1)
        results["cudnn"] = torch.backends.cudnn.version()
        results.measure("nccl", lambda: ".".join(map(str, torch.cuda.nccl.version())))
    name = platform.processor() or platform.machine()
    results["card"] = f"CPU ({name})" if results.dry else torch.cuda.get_device_name()
    results["extension"] = "absent: see the head of benchmarks/gpu.py"
    results.measure("extension", lambda: str(importlib.import_module("nanochat_hf._rustbpe") and "present"))
    results.measure(
        "varlen_attn",
        lambda: str(inspect.signature(importlib.import_module("torch.nn.attention.varlen").varlen_attn)).split(" -> ")[
            0
        ][:300],
    )
    from nanochat_hf.scaling.plan import peak_flops

    results["peak_tflops_assumed"] = peak_flops(results["card"]) / 1e12
    size = 64 if results.dry else 8192
    a, b = (torch.randn(size, size, device=results.device, dtype=torch.bfloat16) for _ in range(2))
    ms = results.measure("matmul_ms", lambda: milliseconds(results, lambda: a @ b))
    if ms and not results.dry:
        results["matmul_tflops"] = round(2 * size**3 / ms / 1e9)
    results.expect(results["extension"] == "present", "the Rust extension cannot be imported")
    results.expect("window_size" in str(results["varlen_attn"]), "varlen_attn takes no window")


@check(45, "`after_set_float32_matmul_precision` is ok; `new_api_only` says whether this torch raises")
def tf32(results: Results) -> None:
    """What TrainingArguments sets, and then Muon's products through the compiler."""
    import torch
    from transformers.utils.import_utils import enable_tf32

    x = torch.randn(2, 64, 64, device=results.device, dtype=torch.float32)

    def products() -> str:
        torch._dynamo.reset()
        torch.compile(lambda x: torch.baddbmm(x, x @ x.mT, x, beta=2.0), fullgraph=True)(x)
        torch.compile(lambda x: x[0] @ x[1], mode=None if results.dry else "max-autotune-no-cudagraphs")(x)
        return "ok"

    enable_tf32(True)
    results.measure("new_api_only", products)
    torch.set_float32_matmul_precision("high")
    results.measure("after_set_float32_matmul_precision", products)
    results.expect(results["after_set_float32_matmul_precision"] == "ok", "TF32 still stops the compiler")


@check(110, "H100: blocks 2 to 3 ms with cuDNN, 5 to 7 without; varlen about 1.5; errors below 0.02")
def attention(results: Results) -> None:
    """Forward and backward pass of one layer at d12's training shape: 16 rows, 12 heads, 2,048 tokens, window 513."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    from nanochat_hf.model.window_attention_nanochat_hf import windowed_sdpa

    rows, heads, length, channels, window = (2, 2, 64, 16, 17) if results.dry else (16, 12, 2048, 128, 513)

    def random() -> Any:
        return torch.randn(rows, length, heads, channels, device=results.device, dtype=torch.bfloat16).transpose(1, 2)

    torch.manual_seed(0)
    inputs, gradient = [random().requires_grad_() for _ in range(3)], random()
    steps = torch.arange(length, device=results.device)
    behind = steps[:, None] - steps

    def exact(seen: Any) -> list[Any]:
        """Output and gradients of the first row in fp32."""
        one = [part[:1].detach().float().requires_grad_() for part in inputs]
        output = sdpa(*one, attn_mask=seen)
        return [output.detach(), *torch.autograd.grad(output, one, gradient[:1].float())]

    wanted = {"window": exact((behind >= 0) & (behind < window)), "full": exact(behind >= 0)}

    def forced(backend: SDPBackend) -> Callable:
        def attend(query, key, value):
            with sdpa_kernel(backend):
                return windowed_sdpa(query, key, value, window)

        return attend

    def flex() -> Callable:
        visible = create_block_mask(
            lambda _, __, i, j: (i >= j) & (i - j < window), None, None, length, length, device=results.device
        )
        if not results.dry:
            return lambda query, key, value: flex_attention(query, key, value, block_mask=visible)

        def with_gradient_of_blocks(*states):  # on a CPU flex_attention has no backward pass
            blocks = windowed_sdpa(*states, window)
            return flex_attention(*(part.detach() for part in states), block_mask=visible) + blocks - blocks.detach()

        return with_gradient_of_blocks

    paths: dict[str, tuple[str, Callable[[], Callable]]] = {
        "blocks of SDPA, window": ("window", lambda: lambda *states: windowed_sdpa(*states, window)),
        "varlen_attn, window": ("window", lambda: varlen(results, (window - 1, 0))),
        "SDPA, full": ("full", lambda: lambda *states: sdpa(*states, is_causal=True)),
        "varlen_attn, full": ("full", lambda: varlen(results, (-1, 0))),
        "flex_attention, window": ("window", flex),
        "blocks by cuDNN": ("window", lambda: forced(SDPBackend.CUDNN_ATTENTION)),
        "blocks by memory-efficient": ("window", lambda: forced(SDPBackend.EFFICIENT_ATTENTION)),
        "blocks by choice, not compiled": ("window", lambda: lambda *states: windowed_sdpa(*states, window)),
        "full by SDPA, not compiled": ("full", lambda: lambda *states: sdpa(*states, is_causal=True)),
        "varlen by itself, not compiled": ("window", lambda: varlen(results, (window - 1, 0))),
    }
    if results.dry:  # neither kernel exists on a CPU; the same code with the one that does
        for name in [name for name in paths if name.startswith("blocks by")]:
            del paths[name]
        paths["blocks by SDPA's formula"] = ("window", lambda: forced(SDPBackend.MATH))
    for name, (kind, make) in paths.items():

        def path(kind: str = kind, make: Callable[[], Callable] = make, compiled: bool = "by" not in name) -> dict:
            attend = make()
            attend = torch.compile(attend) if compiled else attend

            def both() -> list[Any]:
                output = attend(*inputs)
                return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]

            found = [part[:1].float() for part in both()]
            errors = [float((a - b).abs().max()) for a, b in zip(found, wanted[kind], strict=True)]
            relative = max(float((a - b).norm() / b.norm()) for a, b in zip(found[1:], wanted[kind][1:], strict=True))
            row = {"ms": milliseconds(results, both), "error": round(errors[0], 4), "gradients": round(relative, 4)}
            return row | {"kernels": kernels(results, both, 4)}

        row = results.measure(name, path)
        if row:
            results.expect(row["error"] < 0.02 and row["gradients"] < 0.02, f"{name}: errors of 0.02 or more")


@check(
    180, "status 0, losses fall, no graph break, at most 3 recompiles, resumed run identical", ["accelerate", "psutil"]
)
def pretrain(results: Results) -> None:
    """training/pretrain.py with its compiler, evaluation, checkpoints; then resumed from the middle."""
    import torch
    from safetensors.torch import load_file

    steps = 2 if results.dry else 20
    whole, resumed = results.scratch / "base", results.scratch / "resumed"
    facts = pretraining_run(results, whole, steps)
    history = history_of(whole)
    for name, digits in (("loss", 4), ("val_bpb", 4), ("tokens_per_second", 0), ("mfu", 3)):
        results[name] = column(history, name, digits)
    first = re.search(r"first step done ([\d.]+) s", facts["output"])
    results["seconds_to_first_step"] = float(first[1]) if first else None
    for name in ("graph_breaks", "graphs", "recompiles"):
        results[name] = facts[name]
    results["samples"] = SAMPLE.findall(facts["output"])
    losses = results["loss"]
    results.expect(losses[-1] < losses[0], "the loss does not fall")
    results.expect(not facts["graph_breaks"], "there are graph breaks")
    results.expect(len(facts["recompiles"]) <= 3, "there are more than 3 recompiles")

    middle = f"checkpoint-{steps // 2}"
    resumed.mkdir()
    shutil.copytree(whole / middle, resumed / middle)
    os.environ[COUNT_SYNCHRONIZATIONS] = "1"  # here and not above, as counting takes time
    results["waits_for_the_gpu"] = pretraining_run(results, resumed, steps)["synchronizations"]
    a, b = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    gap = max(float((a[name].float() - b[name].float()).abs().max()) for name in a)
    same = all(torch.equal(a[name], b[name]) for name in a)
    results["resumed"] = "identical weights" if same else f"weights differ by at most {gap:.2e}"
    results["loss_resumed"] = column(history_of(resumed), "loss")
    apart = abs(results["loss_resumed"][-1] - losses[-1])
    results.expect(apart <= (0 if results.dry else 0.01), "the resumed run ends at another loss")


def measure_d24(results: Results, fp8: bool, kernel: str = "auto") -> None:
    """Forward and backward pass of one micro-batch of 16 × 2,048 tokens, compiled as in training."""
    import torch

    from nanochat_hf.scaling.plan import peak_flops
    from nanochat_hf.trainers.compilation import compiled_layers, describe_attention, set_attention

    model, ids, flops = in_training(results, 24, fp8)
    set_attention(model, kernel, ids.device, bf16=True)
    results["attention"] = describe_attention(model, ids.device, bf16=True, compiled=True)
    compiled = compiled_layers(model)

    def micro_batch() -> float:
        with compiled:
            loss = loss_of(model, ids)
        loss.backward()
        return loss.detach()

    start = time.perf_counter()
    results["loss"] = round(float(micro_batch()), 3)
    results["compile_s"] = round(time.perf_counter() - start, 1)
    ms = results["ms"] = milliseconds(results, micro_batch, 5)
    speed = ids.numel() / ms * 1e3
    results["tokens_per_second"], results["peak_gb"] = round(speed), peak_gb(results)
    peak = 0.0 if results.dry else peak_flops(torch.cuda.get_device_name())
    if peak:
        results["mfu"] = round(speed * flops / peak, 3)
        results.expect(results["mfu"] >= 0.40, "MFU is below 0.40")
        results.expect(results["peak_gb"] < 75, "the peak of memory is 75 GB or more")
    results["kernels"] = kernels(results, micro_batch, 8)


@check(130, "H100: MFU 0.50 to 0.56 with cuDNN, about 0.43 without; below 75 GB", ["accelerate", "torchao"])
def d24_fp8(results: Results) -> None:
    measure_d24(results, fp8=True)


@check(120, "H100: MFU 0.40 to 0.54 (estimate); slower than d24_fp8; below 75 GB", ["accelerate"])
def d24_bf16(results: Results) -> None:
    measure_d24(results, fp8=False)


@check(90, "weights within 0.02 of the CPU's; few graphs; one step of d24 alone: tens of ms")
def muon(results: Results) -> None:
    """Three steps of MuonAdamW, compiled on the GPU, against the CPU in fp32."""
    import torch
    from torch._dynamo.utils import counters

    from nanochat_hf.optim import MuonAdamW, build_param_groups

    torch.set_float32_matmul_precision("high")
    ours, exact = new_model(results, 4), new_model(results, 4).to("cpu")
    exact.load_state_dict(ours.state_dict())
    compile_ = True if results.dry else None  # None: on CUDA only
    optimizers = MuonAdamW(build_param_groups(ours), compile=compile_), MuonAdamW(build_param_groups(exact))
    pairs = list(zip(ours.parameters(), exact.parameters(), strict=True))
    for step in range(3):
        for mine, reference in pairs:
            generator = torch.Generator().manual_seed(step)
            reference.grad = torch.randn(reference.shape, generator=generator)
            mine.grad = reference.grad.to(results.device)
        for optimizer in optimizers:
            optimizer.step()
    gaps = [float((mine.cpu() - reference).norm() / reference.norm().clamp(min=1e-9)) for mine, reference in pairs]
    results["worst_relative_difference"] = round(max(gaps), 5)
    results["graphs"] = counters["stats"].get("unique_graphs", 0)
    results.expect(max(gaps) < 0.02, "the weights differ by 0.02 or more")
    del ours, exact, optimizers, pairs
    large = new_model(results, 24)
    optimizer = MuonAdamW(build_param_groups(large))
    for parameter in large.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    results["d24_step_ms"] = milliseconds(results, optimizer.step, 3)
    results["peak_gb"] = peak_gb(results)


STEPS = ("eager", "graphed", "compiled")  # compiled last, as it takes longest


@check(80, "H100: below 3 ms per step eager, at most half of it graphed; graphs within 0.1 of eager logits")
def rollout(results: Results) -> None:
    """128 answers of 64 tokens to one prompt, d12 in bf16: what RL does."""
    import torch

    model = new_model(results, 12).to(torch.bfloat16).eval()
    results["graphs_off_by"] = graphs_agree(results, model)
    for steps in STEPS:
        start = time.perf_counter()
        results.measure(steps, lambda steps=steps: decoding_speed(results, model, 128, steps))
        results[f"{steps}_seconds_in_all"] = round(time.perf_counter() - start, 1)
    results.expect(results["graphs_off_by"] < 0.1, "graphed steps differ from eager ones")


@check(110, "status 0; a finite loss in bf16", ["accelerate", "trl", "datasets", "psutil"])
def sft(results: Results) -> None:
    """training/sft.py on a small base model."""
    tasks = ["--tasks", "microworld-chat@60", "microworld-problems@60", "--val_tasks", "microworld-problems@10"]
    sizes = ["--num_iterations", 3, "--total_batch_size", 512 if results.dry else 16384, "--device_batch_size", 8]
    chat_stage(results, "training/sft.py", base_folder(results), *tasks, *sizes, "--num_threads", 1)
    history = history_of(results.scratch / "sft")
    results["loss"] = column(history, "loss")
    results["val_loss"] = [value for row in history for name, value in row.items() if name.startswith("val_loss")]
    results.expect(bool(results["loss"]) and all(0 < loss < 20 for loss in results["loss"]), "no finite loss")


@check(130, "status 0; rollouts and pass@k in bf16", ["accelerate", "trl", "datasets", "psutil"])
def rl(results: Results) -> None:
    """training/rl.py: two steps, with pass@k on held-out problems."""
    before = results.scratch / "sft"
    before = before if (before / "run.json").exists() else base_folder(results)
    tasks = ["--tasks", "microworld-problems@50", "--val_tasks", "microworld-problems@4", "--val_samples", 2]
    few = [2, 4, 8] if results.dry else [8, 16, 64]
    names = ("--prompts_per_step", "--num_generations", "--max_new_tokens")
    sizes = [word for pair in zip(names, few, strict=True) for word in pair]
    sizes += ["--num_iterations", 2, "--eval_every", 2, "--save_every", 0, "--num_threads", 1]
    chat_stage(results, "training/rl.py", before, *tasks, *sizes)
    run = json.loads((results.scratch / "rl" / "run.json").read_text())
    results["reward"], results["metrics"] = column(run["history"], "reward"), run["metrics"]
    results.expect(len(results["reward"]) == 2, "not every step logged a reward")


def chat_stage(results: Results, path: str, model: Path, *arguments: Any) -> None:
    folder = results.scratch / Path(path).stem
    start = time.perf_counter()
    script(results, path, "--model", model, "--output_dir", folder, *arguments, *chat_dtype(results))
    results["seconds_in_all"] = round(time.perf_counter() - start, 1)


@check(
    50,
    "loss within 0.02 of bf16, cosine of every gradient above 0.98, evaluation as in bf16",
    ["accelerate", "torchao"],
)
def fp8_numerics(results: Results) -> None:
    """The same weights and tokens in bf16 and in 8 bits, d8."""
    import torch

    from nanochat_hf.trainers import fp8

    losses, gradients, evaluations = [], [], []
    for on in (False, True):
        model, ids, _ = in_training(results, 8, on)
        scatter_zeros(model)
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(0, model.config.vocab_size, ids[:4].shape, generator=generator).to(results.device)
        loss = loss_of(model, ids)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(
            {name: p.grad.flatten().float() for name, p in model.named_parameters() if p.grad is not None}
        )
        model.eval()
        with fp8.full_precision(model), torch.inference_mode():
            evaluations.append(float(loss_of(model, ids)))
    cosine = torch.nn.functional.cosine_similarity
    cosines = {
        name: float(cosine(gradients[0][name], gradients[1][name], dim=0))
        for name in gradients[0]
        if gradients[0][name].norm() > 0
    }
    worst = min(cosines, key=lambda name: cosines[name])
    results["loss_bf16_fp8"], results["evaluation_bf16_fp8"] = losses, evaluations
    results["worst_cosine"] = f"{cosines[worst]:.4f} ({worst})"
    results.expect(abs(losses[0] - losses[1]) < 0.02, "the losses differ by 0.02 or more")
    results.expect(cosines[worst] > 0.98, "a gradient points elsewhere")
    results.expect(abs(evaluations[0] - evaluations[1]) < 1e-3, "evaluation is not in full precision")


@check(120, "H100: MFU at least that of d24_fp8", ["accelerate", "torchao"])
def d24_fp8_varlen(results: Results) -> None:
    """As `d24_fp8`, but sliding layers call `varlen_attn` instead of what is chosen there."""
    measure_d24(results, fp8=True, kernel="blocks" if results.dry else "varlen")


@check(120, "d12 faster than d24; 64 rows many times the tokens of one row")
def generation(results: Results) -> None:
    """Sampling in bf16: d12 and d24, 1 and 64 answers."""
    import torch

    models = {depth: new_model(results, depth).to(torch.bfloat16).eval() for depth in (12, 24)}
    results.measure("server, d12, 32 rows", lambda: server_speed(results, models[12]))
    for steps in STEPS:
        for depth, model in models.items():
            for rows in (1,) if results.dry and steps == "compiled" else (1, 64):
                name = f"d{depth}, batch {rows}, {steps}"
                results.measure(name, lambda m=model, r=rows, s=steps: decoding_speed(results, m, r, s))


@check(60, "H100: batches several times as fast as items one by one; bf16 differs from fp32 by ties only")
def evaluation(results: Results) -> None:
    """CORE's code on the microworld's completion tasks, d12: batches in bf16 and fp32, and items one by one."""
    import torch

    from nanochat_hf.evals import core
    from nanochat_hf.evals.bundle import load_bundle
    from nanochat_hf.evals.microworld_bundle import write_bundle

    model = new_model(results, 12).eval()
    scatter_zeros(model)
    folder = write_bundle(results.scratch / "bundle", items=6 if results.dry else 100)
    tasks = load_bundle(folder)

    def encode(texts: list[str]) -> list[list[int]]:
        return [[0, *text.encode()] for text in texts]

    def outcomes(max_tokens: int) -> list[float]:
        done = [core.evaluate_task(model, encode, task, max_tokens=max_tokens) for task in tasks]
        return [outcome for result in done for outcome in result.outcomes]

    found: dict[str, list[float]] = {}
    for name, dtype, max_tokens in (
        ("fp32, batches", torch.float32, 65536),
        ("bf16, batches", torch.bfloat16, 65536),
        ("bf16, one by one", torch.bfloat16, 1),
    ):
        model.to(dtype)
        outcomes(max_tokens)  # kernels are loaded
        start = time.perf_counter()
        found[name] = outcomes(max_tokens)
        synchronize(results)
        results[name] = f"{len(found[name]) / (time.perf_counter() - start):,.1f} items/s"
    exact, *others = found.values()
    changed = max(sum(a != b for a, b in zip(exact, other, strict=True)) for other in others)
    results["items_that_differ_from_fp32"] = f"{changed} of {len(exact)}"
    results.expect(changed <= 0.1 * len(exact), "more than a tenth of the items differ from fp32")


@check(600, "the loss falls throughout; samples turn into words", ["accelerate", "psutil"])
def text(results: Results) -> None:
    """Trains on real text for the seconds that are left: d12 where there are more than 240, else d8."""
    import torch

    from nanochat_hf.scaling import depth_dial
    from nanochat_hf.scaling.plan import peak_flops

    data, depth = str(results.text or "microworld"), 12 if results.seconds > 240 else 8
    results["data"] = data if results.text else "microworld: no --text folder was given"
    vocab_size = 8192 if results.text and not results.dry else 512
    if results.text and not installed("pyarrow"):
        raise UserError("--text needs pyarrow, which is absent; install it or leave out --text")
    folder, tokenizer = results.scratch / "text", tokenizer_folder(results, data, vocab_size)
    if results.dry:
        steps, shape = 2, ["--depth", 1, "--head_dim", 32, "--sequence_length", 64, "--device_batch_size", 4]
        shape += ["--total_batch_size", 256, "--eval_tokens", 512, "--compile", "false"]
    else:
        # Starting and compiling take about a minute; a small model reaches some 20 % of the peak.
        rate = 0.2 * (peak_flops(torch.cuda.get_device_name()) or 100e12)
        flops = depth_dial(depth, vocab_size=vocab_size, sequence_length=1024).flops_per_token
        steps = max(20, int(rate / flops / 131072 * (results.seconds - 90)))
        shape = ["--depth", depth, "--sequence_length", 1024, "--device_batch_size", 32]
        shape += ["--total_batch_size", 131072, "--eval_tokens", 1048576]
    every = ["--eval_every", max(1, steps // 5), "--sample_every", max(1, steps // 4), "--save_every", -1]
    where = ["--tokenizer", tokenizer, "--data", data, "--output_dir", folder, "--num_iterations", steps]
    left = results.seconds - (time.monotonic() - results.begun)
    more = ["--log_every", max(1, steps // 25), "--dtype", "bfloat16"]
    results["depth"], results["steps_planned"] = 1 if results.dry else depth, steps
    facts = script(results, "training/pretrain.py", *where, *shape, *every, *more, seconds=left - 15)
    history = history_of(folder)
    results["curve"] = [[row["step"], round(row["loss"], 3)] for row in history if "loss" in row]
    results["val_bpb"] = [[row["step"], round(row["val_bpb"], 4)] for row in history if "val_bpb" in row]
    results["tokens_per_second"] = column(history, "tokens_per_second", 0)[-1:]
    results["mfu"] = column(history, "mfu", 3)[-1:]
    results["samples"] = SAMPLE.findall(facts["output"])
    results["finished"] = "all steps" if facts["status"] == 0 else "stopped by the time limit, with a checkpoint"
    curve = results["curve"]
    results.expect(len(curve) > 1 and curve[-1][1] < curve[0][1], "the loss does not fall")


# -- processes -------------------------------------------------------------------------------------------------------


def installed(package: str) -> bool:
    found = sys.modules.get(package) or importlib.util.find_spec(package)
    return found is not None and getattr(found, "__spec__", found) is not None


def start_process(function: Callable[[], Any], command: list[str] | None, log: Path, own_group: bool = False) -> int:
    """Starts a process whose output goes to `log`; returns its id.

    It runs `command`, or `function` where `command` is None: a fork that already has the libraries, which is quick but
    impossible once CUDA is in use.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        if own_group:
            os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
        if command is not None:
            os.execv(command[0], command)
        function()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait_for(pid: int, seconds: float | None, patience: float = 0.0, group: bool = False) -> int:
    """Waits for a process; returns its exit status, as a negative number for the signal that ended it.

    After `seconds` it gets SIGTERM, `patience` seconds later SIGKILL; with `group` also what it started.
    """
    kill = os.killpg if group else os.kill
    terms = [] if seconds is None else [(time.monotonic() + seconds + patience, signal.SIGKILL)]
    if patience and seconds is not None:
        terms.insert(0, (time.monotonic() + seconds, signal.SIGTERM))
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if terms and time.monotonic() > terms[0][0]:
            kill(pid, terms.pop(0)[1])
        time.sleep(0.05)


def run_check(name: str, options: argparse.Namespace) -> None:
    """Runs one check inside this process."""
    results = Results(name, options)
    results["started"] = True
    CHECKS[name].run(results)


def compile_eagerly() -> None:
    """Lets `torch.compile` trace, but not generate code, which would take minutes on a CPU."""
    import torch

    compile_ = torch.compile

    def traced(model: Any = None, **keywords: Any) -> Any:
        return compile_(model, **{**keywords, "backend": "eager", "mode": None})

    torch.compile = traced


def outcome_of(row: dict[str, Any], status: int, seconds: float) -> str:
    raised = [name for name, value in row.items() if isinstance(value, str) and value.startswith(RAISES)]
    if status == -signal.SIGKILL:
        return f"out of time after {seconds:.0f} s"
    if status:
        return f"failed with status {status}"
    if raised:
        return f"failed in part: {', '.join(raised)}"
    return "not as expected" if "not as expected" in row else "ok"


def run_one(name: str, options: argparse.Namespace, left: float) -> dict[str, Any]:
    """Runs a check in a process of its own; returns its row."""
    row: dict[str, Any] = {"check": name}
    absent = [package for package in CHECKS[name].needs if not installed(package)]
    if absent:
        return row | {"outcome": f"needs {', '.join(absent)}: absent"}
    if left < LEAST_SECONDS:
        return row | {"outcome": f"not run: {max(0, left):.0f} s of the budget are left"}
    limit = min(CHECKS[name].limit * (10 if options.dry else 1), left)  # a busy CPU is no error
    options.seconds = limit
    log, found = (Path(options.scratch) / f"{name}{ending}" for ending in (".log", ".json"))
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "gpu.py"),
        "--check",
        name,
        "--scratch",
        options.scratch,
        "--seconds",
        f"{limit:.0f}",
    ]
    command += ["--output", str(options.output)] + (["--text", str(options.text)] if options.text else [])
    start = time.monotonic()
    command += ["--dry"] if options.dry else []
    own = None if options.dry and name != "environment" else command  # the miniature tries the real way once
    pid = start_process(lambda: run_check(name, options), own, log, own_group=True)
    status = wait_for(pid, limit, group=True)
    seconds = time.monotonic() - start
    measured = json.loads(found.read_text()) if found.exists() else {}
    measured.pop("started", None)
    row |= {"outcome": outcome_of(measured, status, seconds), "seconds": round(seconds, 1), **measured}
    if row["outcome"] not in ("ok", "not as expected"):
        logs = [log, *sorted(Path(options.scratch).glob(f"{name}-*.log"))]  # its own, and those of its scripts
        row["error"] = "\n".join(path.read_text(errors="replace").strip()[-1200:] for path in logs)
    return row


# -- the table -------------------------------------------------------------------------------------------------------


def cell(value: Any) -> str:
    """A value as the cell of a Markdown table."""
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return " ".join(shown.split()).replace("|", "\\|")[:900]


def markdown(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The page: machine and versions, one line per check, and all measurements."""
    machine = rows[0]
    names = ("card", "driver", "capability", "memory_gb", "cudnn", "nccl", "python", "torch", "triton")
    names += ("transformers", "accelerate", "torchao", "trl", "datasets")
    facts = [f"{name} {machine[name]}" for name in names if name in machine]
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    title = "# GPU checks, in miniature on a CPU: no figure counts" if options.dry else "# GPU checks"
    lines = [title, "", f"{datetime.date.today()}, commit {commit.stdout.strip() or 'unknown'}", ""]
    lines += [", ".join(facts), "", "| check | outcome | seconds | expected |", "|---|---|--:|---|"]
    for row in rows:
        cells = (row["check"], row["outcome"], row.get("seconds", "–"), CHECKS[row["check"]].expected)
        lines.append(f"| {' | '.join(map(cell, cells))} |")
    for row in rows:
        own = {name: value for name, value in row.items() if name not in ("check", "outcome", "seconds")}
        if own:
            lines += ["", f"## {row['check']}: {row['outcome']}", "", "| measured | value |", "|---|---|"]
            lines += [f"| {cell(name)} | {cell(value)} |" for name, value in own.items()]
    return "\n".join(lines) + "\n"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormat)
    parser.add_argument("--output", type=Path, required=True, help="folder that receives results.jsonl and gpu.md")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"checks to run: {', '.join(CHECKS)}")
    parser.add_argument("--budget", type=float, default=560, help="seconds for everything")
    parser.add_argument("--text", type=Path, help="folder of parquet files for the last check")
    parser.add_argument("--dry", action="store_true", help="the same code in miniature on a CPU")
    parser.add_argument("--check", choices=list(CHECKS), help=argparse.SUPPRESS)  # a check's own process
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = sorted(set(options.only or ()) - set(CHECKS))
    if unknown:
        raise UserError(f"there is no check {', '.join(unknown)}; the checks are {', '.join(CHECKS)}")
    if options.text and not list(options.text.rglob("*.parquet")):
        raise UserError(f"--text {options.text} holds no parquet files; give a folder with at least two")
    options.text = options.text and options.text.resolve()
    return options


def main() -> None:
    if sys.argv[1:2] == ["--script"]:  # a script's own process: --script PATH --facts FILE ARGUMENTS …
        return run_script(sys.argv[2], sys.argv[5:], Path(sys.argv[4]))
    options = parse_arguments()
    os.chdir(ROOT)
    if options.check:
        return run_check(options.check, options)
    prepare(options)
    rows: list[dict[str, Any]] = []
    begun = time.monotonic()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, open(options.output / "results.jsonl", "w") as lines:
        options.scratch = scratch
        for name in CHECKS:
            if name != "environment" and options.only and name not in options.only:
                continue
            rows.append(run_one(name, options, options.budget - (time.monotonic() - begun)))
            line = json.dumps(rows[-1], ensure_ascii=False, default=str)
            print(line, flush=True)
            lines.write(line + "\n")
            lines.flush()
            (options.output / "gpu.md").write_text(markdown(rows, options))
    print("\n" + markdown(rows, options), flush=True)
    if any(not row["outcome"].startswith(("ok", "needs", "not run")) for row in rows):
        sys.exit(1)


def prepare(options: argparse.Namespace) -> None:
    """Checks that there is a GPU; in the miniature imports once what every check needs."""
    options.output = options.output.resolve()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    if not options.dry:
        if shutil.which("nvidia-smi") is None:
            raise UserError("there is no NVIDIA GPU here (no nvidia-smi); --dry runs the miniature on a CPU")
        return
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    modules = ("torch._dynamo", "torch.profiler", "torchao.float8", "nanochat_hf.trainers.pretraining_setup")
    for name in (*modules, "nanochat_hf.trainers.grpo", "nanochat_hf.trainers.supervised"):
        if installed(name.split(".")[0]):
            try:
                importlib.import_module(name)
            except ImportError:
                pass  # the check that needs it says so
    if installed("torch"):
        import torch
        from torch._dynamo.utils import counters

        compile_eagerly()
        torch.compile(lambda x: x + 1)(torch.zeros(1))  # imports what compiling needs
        torch._dynamo.reset()
        counters.clear()


if __name__ == "__main__":
    run_main(main)
