"""Bytes per token of a tokenizer next to GPT-2's and GPT-4's: the more, the shorter the same text.

    python evaluation/tokenizer.py --run_dir runs/quickstart
    python evaluation/tokenizer.py --tokenizer runs/d12/tokenizer --files my_notes/ letters.txt
    python evaluation/tokenizer.py --tokenizer Qwen/Qwen3-0.6B --output_dir evals/qwen --compare runs/d12/tokenizer

Measures the samples of evaluation/samples (prose, code, maths, Korean, science), the documents of --data and your own
--files. Prints the table and leaves it as eval/tokenizer.json in the tokenizer's folder, where the report finds it.

The others are taken from this machine only: tiktoken's cache (TIKTOKEN_CACHE_DIR), the Hub's cache or a folder. One
that is not there is named as absent.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from nanochat_hf import settings
from nanochat_hf.report.markdown import text_table
from nanochat_hf.settings import UserError

SAMPLES = Path(__file__).with_name("samples")
HUB_NAMES = {"gpt2": "openai-community/gpt2"}

Counter = Callable[[list[str]], int]  # texts → tokens in all


@dataclass
class TokenizerEvaluationConfig:
    tokenizer: str | None = field(default=None, metadata={"help": "folder or Hub id of the tokenizer to measure"})
    run_dir: str | None = field(default=None, metadata={"help": "run folder; its tokenizer/ is measured"})
    output_dir: str | None = field(default=None, metadata={"help": "folder for eval/; default: the tokenizer's own"})
    compare: list[str] = field(
        default_factory=lambda: ["gpt2", "cl100k_base"],
        metadata={"help": "tiktoken's names, Hub ids in the cache or folders"},
    )
    data: str | None = field(
        default=None,
        metadata={"help": "source whose validation documents are measured as well; a folder, a Hub id …"},
    )
    max_documents: int = field(default=500, metadata={"help": "documents taken of --data"})
    files: list[str] = field(default_factory=list, metadata={"help": "your own text files or folders, a row each"})


def main() -> None:
    config = settings.parse_stage("tokenizer_evaluation", TokenizerEvaluationConfig)
    name = config.tokenizer or (config.run_dir and str(Path(config.run_dir) / "tokenizer"))
    if not name:
        raise UserError("give --tokenizer or --run_dir: whose tokenizer is to be measured?")
    folder = Path(config.output_dir or name)
    if not config.output_dir and not folder.is_dir():
        raise UserError(f"{name} is not a folder; give the tokenizer's folder, or --output_dir for one of the Hub")
    started = time.time()
    texts = read_texts(config)

    ours = count_with_transformers(name, local_only=False)
    others = {one: find_counter(one) for one in config.compare}
    counters = {"this tokenizer": ours} | {one: found for one, found in others.items() if found}
    absent = [one for one, found in others.items() if not found]
    num_bytes = {row: sum(len(text.encode("utf-8", "replace")) for text in some) for row, some in texts.items()}
    tokens = {column: {row: count(some) for row, some in texts.items()} for column, count in counters.items()}

    table = comparison(num_bytes, tokens)
    print(text_table(table))
    for one in absent:
        print(f"{one}: absent on this machine")
    metrics = {
        f"{'' if column == 'this tokenizer' else column + '/'}bytes_per_token/{row}": num_bytes[row] / max(count, 1)
        for column, counts in tokens.items()
        for row, count in counts.items()
    }
    details = {"bytes": num_bytes, "tokens": tokens, "absent": absent, "table": table}
    path = folder / "eval" / "tokenizer.json"
    seconds = time.time() - started
    settings.write_json(path, {"evaluation": "tokenizer", "metrics": metrics, "details": details, "seconds": seconds})
    print(f"written to {path}")


def read_texts(config: TokenizerEvaluationConfig) -> dict[str, list[str]]:
    """Returns the rows of the table: the samples, the documents of --data, the files; each a list of texts."""
    from nanochat_hf.data.files import read_documents
    from nanochat_hf.data.sources import open_documents

    names = ("prose", "code", "maths", "korean", "science")
    texts = {name: [(SAMPLES / f"{name}.txt").read_text(encoding="utf-8")] for name in names}
    if config.data:
        texts[config.data] = list(islice(open_documents(config.data, "validation"), config.max_documents))
    for path in config.files:
        texts[path] = list(read_documents(path))
    for name, some in texts.items():
        if not any(some):
            raise UserError(f"{name} holds no text to measure; leave it out or give another")
    return texts


def find_counter(name: str) -> Counter | None:
    """Returns what counts tokens as `name` does, or None where it is not on this machine."""
    return count_with_tiktoken(name) or count_with_transformers(HUB_NAMES.get(name, name), local_only=True)


def count_with_tiktoken(name: str) -> Counter | None:
    """An encoding out of tiktoken's cache. tiktoken would fetch what is not there; here it may not."""
    try:
        import tiktoken
        import tiktoken.load
    except ImportError:
        return None
    fetch = tiktoken.load.read_file
    tiktoken.load.read_file = _refuse
    try:
        encoding = tiktoken.get_encoding(name)
    except (FileNotFoundError, ValueError):  # not in the cache, or no name of tiktoken's
        return None
    finally:
        tiktoken.load.read_file = fetch
    return lambda texts: sum(len(ids) for ids in encoding.encode_ordinary_batch(texts))


def _refuse(path: str) -> bytes:
    raise FileNotFoundError(path)


def count_with_transformers(name: str, local_only: bool) -> Counter | None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local_only)
    except (OSError, ValueError) as error:
        if local_only:
            return None
        raise UserError(f"{name} has no tokenizer that can be loaded ({str(error).splitlines()[0]})") from None

    def count(texts: list[str]) -> int:
        rows = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return sum(len(row) for row in rows)

    return count


def comparison(num_bytes: dict[str, int], tokens: dict[str, dict[str, int]]) -> list[list[str]]:
    """Bytes per token, and in brackets how many more tokens (+) than this tokenizer the other needs."""
    own = tokens["this tokenizer"]
    table: list[list[str]] = [["text", "bytes", *tokens]]
    for row, size in num_bytes.items():
        cells = []
        for column, counts in tokens.items():
            cell = f"{size / max(counts[row], 1):.2f}"
            if column != "this tokenizer":
                cell += f" ({100 * (counts[row] / max(own[row], 1) - 1):+.0f} %)"
            cells.append(cell)
        table.append([row, f"{size:,}", *cells])
    return table


if __name__ == "__main__":
    settings.run_main(main)
