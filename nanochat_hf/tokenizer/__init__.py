"""The byte-pair tokenizer, from training to chat.

- `training`: learns a vocabulary from texts.
- `fast_tokenizer`: wraps a vocabulary as a `PreTrainedTokenizerFast`, and reads bytes and merges back.
- `template`: the chat template; conversations as token ids.
- `corpus_encoder`: encodes many documents at once.
- `tiktoken`: converts to tiktoken and back.

`tokenizer.json` is the one vocabulary file; everything else is derived from it.
"""

from .corpus_encoder import CorpusEncoder
from .fast_tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, byte_letters, mergeable_ranks, token_byte_lengths
from .template import CHAT_TEMPLATE, RESPONSE_TEMPLATE, render_conversation, render_prompt, stop_token_ids
from .tiktoken import from_mergeable_ranks, read_tiktoken, to_tiktoken, write_tiktoken
from .training import train

__all__ = [
    "CHAT_TEMPLATE",
    "RESPONSE_TEMPLATE",
    "SPECIAL_TOKENS",
    "SPLIT_PATTERN",
    "CorpusEncoder",
    "byte_letters",
    "from_mergeable_ranks",
    "mergeable_ranks",
    "read_tiktoken",
    "render_conversation",
    "render_prompt",
    "stop_token_ids",
    "to_tiktoken",
    "token_byte_lengths",
    "train",
    "write_tiktoken",
]
