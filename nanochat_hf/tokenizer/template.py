"""Conversations as tokens: the chat template of every checkpoint, and what of it is trained."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8").removesuffix("\n")

# Lets `tokenizer.parse_response` read what the model wrote back into a message.
RESPONSE_TEMPLATE: dict[str, Any] = {
    "version": 1,
    "defaults": {"role": "assistant"},
    "start_anchor_pattern": r"<\|assistant_start\|>|<\|output_end\|>",
    "fields": {
        "tool_calls": {
            "open": "<|python_start|>",
            "close": "<|python_end|>",
            "repeats": True,
            "content": "text",
            "content_args": {"strip": False},
            "transform": {
                "type": "function",
                "function": {"name": "calculator", "arguments": {"expression": "{content}"}},
            },
        },
        "content": {"close": "<|assistant_end|>", "content": "text", "content_args": {"strip": False}},
    },
}


def render_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], max_length: int | None = None
) -> tuple[list[int], list[int]]:
    """Returns a conversation's ids and, for each, 1 where the assistant is trained to say it.

    Longer conversations are cut on the right here, so that whatever packs rows of `max_length` finds that all fit.
    """
    rendered = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = rendered["input_ids"], rendered["assistant_masks"]
    return list(ids[:max_length]), list(mask[:max_length])


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> list[int]:
    """Returns the ids of a conversation that waits for the assistant: they end with its start token.

    After a tool's result they end with that: the assistant's turn has begun already, and goes on.

    Raises:
        ValueError: there is no message, or the last one is the assistant's. Upstream drops such an answer without a
            word; here whoever wants the question alone says so.
    """
    if not messages:
        raise ValueError("the conversation is empty: there is nothing to answer")
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            "the last message is the assistant's own: leave it out (messages[:-1]) to have it answered anew, "
            "or take render_conversation for the ids of the whole conversation"
        )
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False))
