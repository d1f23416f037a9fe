"""Byte-pair encoding from training to chat: one vocabulary file, `tokenizer.json`, from which all else is built."""

from .corpus_encoder import CorpusEncoder
from .template import CHAT_TEMPLATE, render_conversation, render_prompt
from .tiktoken import read_tiktoken, to_tiktoken, write_tiktoken
from .vocabulary import (
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    from_mergeable_ranks,
    mergeable_ranks,
    token_byte_lengths,
    train,
)

__all__ = [
    "CHAT_TEMPLATE",
    "SPECIAL_TOKENS",
    "SPLIT_PATTERN",
    "CorpusEncoder",
    "from_mergeable_ranks",
    "mergeable_ranks",
    "read_tiktoken",
    "render_conversation",
    "render_prompt",
    "to_tiktoken",
    "token_byte_lengths",
    "train",
    "write_tiktoken",
]
