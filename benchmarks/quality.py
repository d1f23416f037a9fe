"""Bits per byte after equal numbers of tokens: our recipe, upstream's own script and variants of ours, by seeds.

    python benchmarks/quality.py --data DATA_FOLDER --upstream NANOCHAT_CHECKOUT --output_dir runs/quality
    python benchmarks/quality.py --data DATA_FOLDER --output_dir runs/quality --arms ours "keep tails" --seeds 1
    python benchmarks/quality.py --data DATA_FOLDER --output_dir runs/rows-1024 --sequence_length 1024 --batch_size 8 \
        --arms ours "best fit" "keep tails"                          # which packing, for rows of one length

There are two tables. The first has upstream's figure: bits per byte of packed rows, which are beginnings of
documents. The second has whole documents, each token once, from its document's beginning. It decides defaults, because
readers read whole documents. Upstream's script does not measure it, so its last checkpoint is converted and measured
here, on the same documents.

Every arm is a whole run of a training script with the same tokenizer, tokens, batch, context and validation rows.
Validation rows are those of upstream's packing of the last shard, whatever packing the arm trains on. Models are not
compiled unless --compile is given.

Finished runs are kept and interrupted ones are resumed, so the command can be repeated until the table is complete.
Seeds, arms and depths may be added. Other data, tokens or shapes need another --output_dir: options.json there says
what its runs were made with. The table is printed after every run.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from benchmark_tools import UPSTREAM_HELP, HelpFormat, check_upstream, train_tokenizer
from pretrain import ROOT, prepare_upstream

from nanochat_hf.conversion import convert_folder
from nanochat_hf.data.loader import ValidationDocuments
from nanochat_hf.data.sources import open_documents
from nanochat_hf.evals.bits_per_byte import packed_bits_per_byte
from nanochat_hf.openmp import without_our_choice
from nanochat_hf.scaling.depth import small_batch
from nanochat_hf.settings import UserError, load_run, run_main, write_json
from nanochat_hf.tokenizer import token_byte_lengths

SMALL = "--preset small --total_batch_size {small_batch} --num_iterations {small} --eval_every {small}".split()
# Arm → what it adds to the command of training/pretrain.py, in order of importance. "upstream" is upstream's script.
ARMS: dict[str, list[str]] = {
    "ours": [],
    "upstream": [],
    "small": SMALL,
    "small from noise": [*SMALL, "--bigram_tokens", "0"],
    "small from bigrams alone": [*SMALL, "--induction_heads", "false"],
    "best fit": ["--packing", "best_fit"],
    "keep tails": ["--packing", "keep_tails"],
    "shuffled": ["--data_seed", "{seed}"],
    "upstream's rates": ["--lr_scale", "{scale}"],
    "half the batch": ["--total_batch_size", "{half_batch}", "--num_iterations", "{twice_steps}"],
    "classic": ["--preset", "classic"],
}

RECORD = "options.json"  # in the folder of the runs
# The options that all runs of a folder share, in the order in which a difference is named.
SHARED = "data sequence_length batch_size tokens head_dim vocab_size rows_at_once compile eval_tokens".split()
SHARED.append("eval_documents")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormat)
    parser.add_argument("--data", required=True, help="folder of parquet shards; the last one validates")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/quality"), help="folder for runs and table")
    parser.add_argument("--upstream", type=Path, help=UPSTREAM_HELP)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), help="runs to compare")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2], help="seeds of the initial weights")
    parser.add_argument("--depth", type=int, default=4, help="layers; the hidden size is 64 × depth")
    parser.add_argument("--head_dim", type=int, default=64, help="width of an attention head")
    parser.add_argument("--sequence_length", type=int, default=512, help="tokens per row")
    parser.add_argument("--vocab_size", type=int, default=8192, help="of the tokenizer trained here")
    parser.add_argument("--tokens", type=int, default=3_000_000, help="training tokens, rounded up to whole steps")
    parser.add_argument("--batch_size", type=int, default=16, help="rows per step")
    parser.add_argument("--rows_at_once", type=int, default=1, help="rows per micro-batch; one fits a CPU's cache")
    parser.add_argument(
        "--compile", action="store_true", help="compile models, which takes minutes and then saves time"
    )
    parser.add_argument("--eval_tokens", type=int, default=262_144, help="validation tokens")
    parser.add_argument("--eval_documents", type=int, default=300, help="whole validation documents")
    options = parser.parse_args()
    options.output_dir = options.output_dir.resolve()
    if not Path(options.data).is_dir():
        raise UserError(f"there is no folder {options.data}; --data takes a folder of parquet shards")
    options.data = str(Path(options.data).resolve())
    if "upstream" in options.arms:
        options.upstream = check_upstream(options.upstream, "scripts/base_train.py")
    if not options.upstream:
        options.arms = [arm for arm in options.arms if arm != "upstream"]
    options.batch_tokens = options.batch_size * options.sequence_length
    options.steps = -(-options.tokens // options.batch_tokens)
    return options


def folder_of(options: argparse.Namespace, arm: str, seed: int) -> Path:
    """The folder of one run."""
    return options.output_dir / f"d{options.depth}-{arm.replace(' ', '-')}-seed{seed}"


def shared_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the runs of a folder share, for its record."""
    return {name: getattr(options, name) for name in SHARED}


def check_record(options: argparse.Namespace) -> None:
    """Compares the options with those that the runs of this folder were made with.

    Raises:
        UserError: one of them differs, so that the tables would show other runs than their titles say.
    """
    wanted = shared_options(options)
    for made_with in found_options(options):
        for name in SHARED:
            if name in made_with and made_with[name] != wanted[name]:
                raise UserError(
                    f"{options.output_dir} was made with --{name} {made_with[name]}, not {wanted[name]}; give another "
                    "--output_dir"
                )


def found_options(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What the tokenizer and the runs in the folder were made with, as far as it is known."""
    folder = options.output_dir
    started = [path for name in ("run.json", "checkpoint-*") for path in folder.glob(f"d*-seed*/{name}")]
    started += [
        log for log in folder.glob("d*-upstream-seed*.log") if "Validation bpb" in log.read_text("utf-8", "replace")
    ]
    has_tokenizer = (folder / "tokenizer" / "tokenizer.json").exists()
    if (folder / RECORD).exists():
        record = json.loads((folder / RECORD).read_text())
        if started:
            yield record
        elif has_tokenizer:
            yield {name: record[name] for name in ("data", "vocab_size")}
        return
    if has_tokenizer:  # the folder is older than its record
        from transformers import AutoTokenizer

        yield {"vocab_size": len(AutoTokenizer.from_pretrained(folder / "tokenizer"))}
    for arm in ARMS:
        for run in sorted(folder.glob(f"d*-{arm.replace(' ', '-')}-seed*/run.json")):
            yield options_of_run(options, arm, (load_run(run.parent) or {}).get("config", {}))


def options_of_run(options: argparse.Namespace, arm: str, config: dict[str, Any]) -> dict[str, Any]:
    """The shared options that a run of training/pretrain.py was made with, by the settings in its run.json."""
    found = {
        name: config[name]
        for name in ("sequence_length", "head_dim", "eval_tokens", "eval_documents")
        if name in config
    }
    if "device_batch_size" in config:
        found["rows_at_once"] = config["device_batch_size"]
    if "compile" in config:
        found["compile"] = config["compile"] == "true"
    if len(data := config.get("data", [])) == 1:
        found["data"] = data[0]
    batch, steps = config.get("total_batch_size", -1), config.get("num_iterations", -1)
    if "--total_batch_size" not in ARMS[arm] and min(batch, steps) > 0:
        found["batch_size"] = batch // config["sequence_length"]
        found["tokens"] = options.tokens if steps == -(-options.tokens // batch) else steps * batch
    return found


def make_tokenizer(options: argparse.Namespace) -> Path:
    """Folder of the tokenizer that all arms share; it is trained at the first call."""
    folder = options.output_dir / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        texts = open_documents(options.data).next_batch(4000)
        train_tokenizer(texts, options.vocab_size).save_pretrained(folder)
    return folder


def shape_options(options: argparse.Namespace, dash: str) -> list[str]:
    """The settings that both scripts have; `dash` is "_" for ours and "-" for upstream's."""
    values = {"depth": options.depth, "head_dim": options.head_dim, "window_pattern": "SSSL"}
    values |= {"device_batch_size": options.rows_at_once, "total_batch_size": options.batch_tokens}
    values |= {"num_iterations": options.steps, "eval_tokens": options.eval_tokens, "eval_every": options.steps}
    return [part for name, value in values.items() for part in (f"--{name.replace('_', dash)}", str(value))]


def train_ours(options: argparse.Namespace, arm: str, seed: int, tokenizer: Path) -> dict[str, float]:
    """Runs training/pretrain.py, or resumes it; returns validation bits per byte and tokens per second."""
    output = folder_of(options, arm, seed)
    command = [sys.executable, str(ROOT / "training" / "pretrain.py"), "--tokenizer", str(tokenizer)]
    command += ["--output_dir", str(output), "--data", options.data, "--seed", str(seed)]
    command += ["--compile", str(options.compile).lower()]
    command += ["--sequence_length", str(options.sequence_length), "--save_every", "20", *shape_options(options, "_")]
    command += ["--eval_documents", str(options.eval_documents)]
    values = {"seed": seed, "half_batch": options.batch_tokens // 2, "twice_steps": 2 * options.steps}
    values["small_batch"] = small_batch(options.tokens, options.sequence_length)
    values["small"] = -(-options.tokens // values["small_batch"])
    values["scale"] = (options.batch_tokens / 2**19) ** 0.5  # upstream's factor on the learning rates
    command += [part.format(**values) for part in ARMS[arm]]
    if not load_run(output):
        follow(command, output.with_suffix(".log"), {})
    run = load_run(output)
    metrics = run["metrics"]
    found = {"bpb": metrics["val_bpb"], "tokens_per_second": metrics.get("tokens_per_second", 0.0)}
    return found | ({"document_bpb": metrics["document_bpb"]} if "document_bpb" in metrics else {})


def train_upstream(options: argparse.Namespace, seed: int, tokenizer: Path) -> dict[str, float]:
    """Runs upstream's script. It fixes its seed, so `torch.manual_seed` is replaced before it starts."""
    from transformers import AutoTokenizer

    base = folder_of(options, "upstream", seed)
    log = base.with_suffix(".log")
    found = read_upstream(log, options.steps)
    if not found:
        shutil.rmtree(base, ignore_errors=True)
        environment = prepare_upstream(options, AutoTokenizer.from_pretrained(tokenizer), base)
        if not options.compile:
            environment["TORCHDYNAMO_DISABLE"] = "1"
        reseed = f"import runpy, torch; seed = torch.manual_seed; torch.manual_seed = lambda _: seed({seed}); "
        command = [sys.executable, "-c", reseed + "runpy.run_module('scripts.base_train', run_name='__main__')"]
        command += ["--max-seq-len", str(options.sequence_length), "--core-metric-every", "-1", "--sample-every", "-1"]
        follow(command + shape_options(options, "-"), log, environment, options.upstream)
        found = read_upstream(log, options.steps)
    if not found:
        raise UserError(f"{log} has no validation of step {options.steps}; read there why")
    return found | {"document_bpb": measure_upstream(options, base, tokenizer)}


def measure_upstream(options: argparse.Namespace, base: Path, tokenizer: Path) -> float:
    """Bits per byte of whole documents of upstream's last checkpoint, measured once, by our code."""
    kept = base / "document_bpb.json"
    if kept.exists():
        return json.loads(kept.read_text())
    from transformers import AutoTokenizer

    from nanochat_hf import NanochatHFForCausalLM

    converted = base / "converted"
    if not (converted / "config.json").exists():
        convert_folder(base / "base_checkpoints" / f"d{options.depth}", converted, tokenizer=tokenizer)
    model = NanochatHFForCausalLM.from_pretrained(converted).eval()
    words = AutoTokenizer.from_pretrained(tokenizer)
    shape = {"batch_size": options.rows_at_once, "sequence_length": options.sequence_length}
    documents = ValidationDocuments(options.data, words, documents=options.eval_documents, **shape)
    lengths = torch.zeros(model.config.vocab_size, dtype=torch.long)
    lengths[: len(words)] = torch.as_tensor(token_byte_lengths(words))
    found = packed_bits_per_byte(model, documents, lengths)
    kept.write_text(json.dumps(found) + "\n")
    return found


def read_upstream(log: Path, steps: int) -> dict[str, float]:
    """Last validation and median speed from upstream's output; empty if it did not reach the last step."""
    text = log.read_text(errors="replace") if log.exists() else ""
    bpb = re.findall(rf"Step 0*{steps} \| Validation bpb: ([\d.]+)", text)
    speeds = [float(speed.replace(",", "")) for speed in re.findall(r"tok/sec: ([\d,]+)", text)[5:]]
    return {"bpb": float(bpb[-1]), "tokens_per_second": statistics.median(speeds or [0.0])} if bpb else {}


def follow(command: list[str], log: Path, environment: dict[str, str], folder: Path = ROOT) -> None:
    """Runs a script to its end, with its output in a file.

    Raises:
        UserError: the script failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{time.strftime('%H:%M')} {log.stem} …", flush=True)
    with log.open("w") as out:
        done = subprocess.run(command, cwd=folder, env={**without_our_choice(), **environment}, stdout=out, stderr=out)
    if done.returncode:
        raise UserError(f"a training script failed; the end of {log}:\n{log.read_text(errors='replace')[-2000:]}")


def print_table(options: argparse.Namespace, found: dict[str, dict[int, dict[str, float]]]) -> None:
    """Prints the finished runs: bits per byte by seed, the mean difference to ours, and the speed."""
    shape = f"d{options.depth}, rows of {options.sequence_length}, {options.steps * options.batch_tokens:,} tokens"
    for measure, name in (("bpb", "packed rows"), ("document_bpb", "whole documents")):
        if any(measure in run for runs in found.values() for run in runs.values()):
            print_measure(options, found, measure, f"{shape}, bits per byte of {name}")


def print_measure(options: argparse.Namespace, found: dict[str, Any], measure: str, title: str) -> None:
    """Prints one table."""
    seeds = " | ".join(f"seed {seed}" for seed in options.seeds)
    print(f"\n| {title} | {seeds} | mean − ours | tokens per second |")
    print("|---|" + "--:|" * (len(options.seeds) + 2))
    ours = found.get("ours", {})
    for arm, runs in found.items():
        cells = [f"{runs[seed][measure]:.4f}" if measure in runs.get(seed, {}) else "–" for seed in options.seeds]
        pairs = [run[measure] - ours[seed][measure] for seed, run in runs.items() if measure in run and seed in ours]
        cells.append(f"{statistics.mean(pairs):+.4f}" if pairs else "–")
        cells.append(f"{statistics.median(run['tokens_per_second'] for run in runs.values()):,.0f}")
        print(f"| {arm} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    options = parse_arguments()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    check_record(options)
    tokenizer = make_tokenizer(options)
    write_json(options.output_dir / RECORD, shared_options(options))
    found: dict[str, dict[int, dict[str, float]]] = {}
    failed = []
    for seed in options.seeds:
        for arm in options.arms:
            try:
                if arm == "upstream":
                    result = train_upstream(options, seed, tokenizer)
                else:
                    result = train_ours(options, arm, seed, tokenizer)
            except UserError as error:  # one failed run must not end the others
                print(error, file=sys.stderr, flush=True)
                failed.append(folder_of(options, arm, seed).name)
                continue
            found.setdefault(arm, {})[seed] = result
            print_table(options, found)
            (options.output_dir / f"d{options.depth}.json").write_text(json.dumps(found, indent=1) + "\n")
    if failed:
        raise UserError(f"without a result: {', '.join(failed)}; the reasons are above")


if __name__ == "__main__":
    run_main(main)
