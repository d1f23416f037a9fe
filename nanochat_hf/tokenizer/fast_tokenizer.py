"""The trained vocabulary as a `PreTrainedTokenizerFast`: wraps it, and reads its bytes, merges and pattern back."""

import json
import re
from functools import lru_cache
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nanochat_hf import _rustbpe

from .template import CHAT_TEMPLATE, RESPONSE_TEMPLATE

# Their ids follow the byte-pair vocabulary in this order, as upstream's do.
SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
# GPT-4's pattern, but digits in groups of one or two. At 32,768 tokens and depth 12 that gives 0.965 bits per byte,
# groups of up to three give 0.972 (upstream's log, January 2026).
SPLIT_PATTERN: str = _rustbpe.DEFAULT_PATTERN
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")  # how other tokenizers write one byte


def wrap(
    tokens: list[bytes], merges: list[tuple[int, int]], pattern: str, model_max_length: int
) -> PreTrainedTokenizerFast:
    """Builds the fast tokenizer with the control tokens and the chat template.

    Args:
        tokens: the bytes of each token, in the order of the ids; control tokens left out.
        merges: pairs of ids, in the order in which they are applied.
        pattern: the regular expression that splits text into pieces; no merge crosses a piece's end.
        model_max_length: context length in tokens, written into `tokenizer_config.json`.
    """
    spelled = [_as_text(token) for token in tokens]
    bpe = models.BPE(
        vocab={token: index for index, token in enumerate(spelled)},
        merges=[(spelled[left], spelled[right]) for left, right in merges],
        ignore_merges=True,  # a word that is a token needs no merging: tiktoken's shortcut, same ids
    )
    backend = Tokenizer(bpe)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|bos|>",
        eos_token="<|assistant_end|>",
        pad_token="<|bos|>",
        extra_special_tokens=[name for name in SPECIAL_TOKENS if name not in ("<|bos|>", "<|assistant_end|>")],
        clean_up_tokenization_spaces=False,
        model_max_length=model_max_length,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        response_template=RESPONSE_TEMPLATE,
    )


def mergeable_ranks(tokenizer: PreTrainedTokenizerFast) -> dict[bytes, int]:
    """Returns the vocabulary as tiktoken keeps it: each token's bytes with its id. Control tokens are left out."""
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    return {_as_bytes(token): index for token, index in vocabulary.items()}


def token_byte_lengths(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Returns how many bytes each token stands for, int64 [vocab_size]; 0 for control tokens.

    The raw bytes are counted. A token that holds part of a character is not valid UTF-8; decoding it would count the
    three bytes of U+FFFD instead. Tokenizers of other models are read, too: byte-level ones, and those that write a
    space as "▁" and a single byte as <0x0A>.
    """
    lengths = np.zeros(len(tokenizer), dtype=np.int64)
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
    byte_level, special = "ByteLevel" in json.dumps(decoder), set(tokenizer.all_special_ids)
    for token, index in tokenizer.get_vocab().items():
        if index not in special:
            size = 1 if BYTE_TOKEN.fullmatch(token) else len(token.replace("▁", " ").encode())
            lengths[index] = len(token) if byte_level else size
    return lengths


def merges_and_pattern(tokenizer: PreTrainedTokenizerFast) -> tuple[list[tuple[int, int, int]], str]:
    """Reads the merges and the split pattern of a byte-level BPE.

    Returns:
        The merges, in order of rank, as ids (left, right, merged); and the regular expression.

    Raises:
        ValueError: the tokenizer is of another kind; see `unlike_ours`.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    if difference := unlike_ours(content):
        raise ValueError(f"it {difference}")
    vocabulary = content["model"]["vocab"]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in content["model"]["merges"]]
    merges = [(vocabulary[left], vocabulary[right], vocabulary[left + right]) for left, right in pairs]
    return merges, content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]


def unlike_ours(content: dict[str, Any]) -> str | None:
    """What a tokenizer does that the encoder in Rust does not do; None: it is a byte-level BPE as `wrap` builds it.

    Args:
        content: of `tokenizer.json`; empty: there is none.
    """
    if not content:
        return "has no tokenizer.json"
    model, normalizer = content["model"], content["normalizer"]
    if model["type"] != "BPE":
        return f"is a {model['type']} tokenizer, no byte-level BPE"
    if normalizer is not None:
        return f"changes the text before it splits it ({normalizer['type']})"
    steps = (content["pre_tokenizer"] or {}).get("pretokenizers", [content["pre_tokenizer"]])
    split, to_bytes = steps if len(steps) == 2 else ({}, {})
    if (split.get("type"), to_bytes.get("type")) != ("Split", "ByteLevel") or "Regex" not in split["pattern"]:
        return "does not split text by exactly one regular expression and then into bytes"
    if split["behavior"] != "Isolated" or split["invert"]:
        return "does not keep all that its regular expression finds as pieces"
    if to_bytes["add_prefix_space"]:
        return "adds spaces to the text"
    if to_bytes["use_regex"] or model["dropout"]:
        return "splits text a second time or merges at random"
    if model["continuing_subword_prefix"] or model["end_of_word_suffix"] or model["byte_fallback"]:
        return "spells its tokens with prefixes, suffixes or byte codes"
    return None


@lru_cache(maxsize=1)
def _alphabet() -> tuple[list[str], dict[str, int]]:
    """GPT-2's printable character for each byte, and the byte for each character: `tokenizer.json` stores these."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {value: chr(value) for value in printable}
    for value in range(256):
        letters.setdefault(value, chr(256 + sum(1 for one in letters if letters[one] >= chr(256))))
    return [letters[value] for value in range(256)], {letters[value]: value for value in range(256)}


def _as_text(token: bytes) -> str:
    letters, _ = _alphabet()
    return "".join(letters[value] for value in token)


def byte_letters() -> dict[str, int]:
    """Returns the byte that each character stands for in a byte-level vocabulary's spelling of its tokens."""
    return _alphabet()[1]


def _as_bytes(token: str) -> bytes:
    _, values = _alphabet()
    return bytes(values[letter] for letter in token)
