"""Bytes per token of a tokenizer beside GPT-2's and GPT-4's. More bytes per token make the same text shorter.

    nanochat-hf evaluate tokenizer --run_dir runs/quickstart
    nanochat-hf evaluate tokenizer --tokenizer runs/d12/tokenizer --files my_notes/ letters.txt
    nanochat-hf evaluate tokenizer --tokenizer Qwen/Qwen3-0.6B --output_dir evals/qwen --compare runs/d12/tokenizer

Measured are five built-in samples (prose, code, maths, Korean, science), the documents of --data and your own --files.
The table is printed, and written to eval/tokenizer.json in the tokenizer's folder for the report.

The other tokenizers are never downloaded: they come from tiktoken's cache (TIKTOKEN_CACHE_DIR), the Hub's cache or a
folder. One that is missing there is reported as absent.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from nanochat_hf import settings
from nanochat_hf.report.markdown import text_table
from nanochat_hf.settings import StageHelp, UserError, setting

SAMPLES = Path(__file__).with_name("samples")
HUB_NAMES = {"gpt2": "openai-community/gpt2"}

TokenCounter = Callable[[list[str]], int]  # texts → number of their tokens
OWN = "this tokenizer"  # the column of the measured tokenizer


@dataclass
class TokenizerEvaluationConfig:
    """The settings of this evaluation."""

    tokenizer: str | None = setting(None, "folder or Hub id of the tokenizer to measure", path=True)
    run_dir: str | None = setting(None, "run folder whose tokenizer/ is measured", path=True)
    output_dir: str | None = setting(
        None, "folder that gets eval/tokenizer.json; default: the tokenizer's folder", path=True
    )
    compare: list[str] = setting(
        ["gpt2", "cl100k_base"],
        "tokenizers to compare with: tiktoken's names, Hub ids in the cache, or folders",
        path=True,
        commas=True,
    )
    data: str | None = setting(None, "source (a folder, a Hub id …) whose validation documents are measured as well")
    text_column: str | None = setting(None, "column or key with the text of --data; found if not given")
    on_bad_file: str = setting("stop", "what a file of --data that cannot be read does", choices=("stop", "skip"))
    max_documents: int = setting(500, "number of documents of --data; -1: all", at_least=1, also=[-1])
    files: list[str] = setting(
        [], "your own text files or folders; each is a row of the table", path=True, commas=True
    )


HELP = StageHelp(
    "evaluate tokenizer",
    __doc__,
    "tokenizer run_dir output_dir compare data text_column on_bad_file max_documents files",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line `argv`, by default that of the process."""
    config = settings.parse_stage("tokenizer_evaluation", TokenizerEvaluationConfig, argv, HELP)
    name = config.tokenizer or (config.run_dir and str(Path(config.run_dir) / "tokenizer"))
    if not name:
        raise UserError("no tokenizer is named; give --tokenizer or --run_dir")
    folder = Path(config.output_dir or name)
    if not config.output_dir and not folder.is_dir():
        raise UserError(f"{name} is not a folder; give the tokenizer's folder, or also --output_dir for a Hub id")
    settings.check_output_dir(folder, unfinished=False)
    started = time.time()
    texts = read_texts(config)

    ours = count_with_transformers(name, local_only=False)
    others = {one: find_counter(one) for one in config.compare}
    counters = {OWN: ours} | {one: found for one, found in others.items() if found}
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
    """The rows of the table (samples, documents of --data, files) as name → texts.

    Raises:
        UserError: a row has no text.
    """
    from nanochat_hf.data.files import read_documents
    from nanochat_hf.data.sources import open_documents

    names = ("prose", "code", "maths", "korean", "science")
    texts = {name: [(SAMPLES / f"{name}.txt").read_text(encoding="utf-8")] for name in names}
    if config.data:
        documents = open_documents(config.data, "validation", config.text_column, on_bad_file=config.on_bad_file)
        texts[config.data] = list(documents if config.max_documents < 0 else islice(documents, config.max_documents))
    for path in config.files:
        texts[path] = list(read_documents(path))
    for name, some in texts.items():
        if not any(some):
            raise UserError(f"{name} has no text to measure; leave it out or give another")
    return texts


def find_counter(name: str) -> TokenCounter | None:
    """The counter of the tokenizer called `name`, or None if it is not on this machine."""
    return count_with_tiktoken(name) or count_with_transformers(HUB_NAMES.get(name, name), local_only=True)


def count_with_tiktoken(name: str) -> TokenCounter | None:
    """The counter of an encoding in tiktoken's cache, or None. tiktoken's download of missing files is refused."""
    try:
        import tiktoken
        import tiktoken.load
    except ImportError:
        return None
    fetch = tiktoken.load.read_file
    tiktoken.load.read_file = _refuse
    try:
        encoding = tiktoken.get_encoding(name)
    except (FileNotFoundError, ValueError):  # not in the cache, or tiktoken has no such name
        return None
    finally:
        tiktoken.load.read_file = fetch
    return lambda texts: sum(len(ids) for ids in encoding.encode_ordinary_batch(texts))


def _refuse(path: str) -> bytes:
    raise FileNotFoundError(path)


def count_with_transformers(name: str, local_only: bool) -> TokenCounter | None:
    """The counter of a tokenizer folder or Hub id. With `local_only` nothing is downloaded, and None means absent.

    Raises:
        UserError: not `local_only`, and there is no such tokenizer.
    """
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
    """The table: bytes per token, and in brackets how many more (+) or fewer (-) tokens the other tokenizer needs.

    Args:
        num_bytes: row → UTF-8 bytes.
        tokens: column → row → number of tokens.
    """
    own = tokens[OWN]
    table: list[list[str]] = [["text", "bytes", *tokens]]
    for row, size in num_bytes.items():
        cells = []
        for column, counts in tokens.items():
            cell = f"{size / max(counts[row], 1):.2f}"
            if column != OWN:
                cell += f" ({100 * (counts[row] / max(own[row], 1) - 1):+.0f} %)"
            cells.append(cell)
        table.append([row, f"{size:,}", *cells])
    return table


if __name__ == "__main__":
    settings.run_main(main)
