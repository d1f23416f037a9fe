"""Conversations as token ids: the chat template of every checkpoint, and the mask of the tokens that are trained."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8").removesuffix("\n")

# With this `tokenizer.parse_response` turns what the model wrote back into a message: text, calls and results, each in
# the order in which they were written. The text around a call is joined. What follows the end of the turn is padding.
RESPONSE_TEMPLATE: dict[str, Any] = {
    "version": 1,
    "defaults": {"role": "assistant", "content": ""},
    "start_anchor_pattern": r"<\|assistant_start\|>|<\|output_end\|>",
    "fields": {
        "tool_calls": {
            "open": "<|python_start|>",
            "close_pattern": r"<\|python_end\|>|(?=<\|(?:python_start|output_start|output_end|assistant_end|bos)\|>)",
            "repeats": True,
            "content": "text",
            "content_args": {"strip": False},
            "transform": {
                "type": "function",
                "function": {"name": "calculator", "arguments": {"expression": "{content}"}},
            },
        },
        "tool_results": {
            "open": "<|output_start|>",
            "close_pattern": r"<\|output_end\|>|(?=<\|(?:python_start|python_end|output_start|assistant_end|bos)\|>)",
            "repeats": True,
            "content": "text",
            "content_args": {"strip": False},
        },
        # Control tokens that stand where they mean nothing. The field stays empty, so no message has it.
        "misplaced": {
            "open_pattern": r"<\|(?:python_end|output_end|user_start|user_end|assistant_start)\|>",
            "close_pattern": "",
            "content": "text",
        },
        "content": {
            "close_pattern": r"<\|(?:assistant_end|bos)\|>.*",
            "repeats": True,
            "join": "",
            "content": "text",
            "content_args": {"strip": False},
        },
    },
}


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the ids at which stock `generate` ends: the end of a turn, and the end of a tool call.

    A call needs its result before the turn can go on. Who generates without the calculator gets the call as
    `tool_calls`, and sends the result as a tool's message.
    """
    return tokenizer.convert_tokens_to_ids(["<|assistant_end|>", "<|python_end|>"])


def render_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], max_length: int | None = None
) -> tuple[list[int], list[int]]:
    """Renders a whole conversation with the chat template.

    Args:
        tokenizer: a tokenizer with our chat template.
        messages: the conversation, in the form that transformers' chat templates take.
        max_length: drop the tokens after this many; default: keep all. Rows are packed from whole conversations, so
            this is the place to shorten one.

    Returns:
        The token ids, and a mask of the same length: 1 where the assistant's token is trained, else 0.

    Raises:
        jinja2.TemplateError: the messages are not a conversation; the message says why.
    """
    rendered = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = rendered["input_ids"], rendered["assistant_masks"]
    return list(ids[:max_length]), list(mask[:max_length])


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> list[int]:
    """Renders a conversation that waits for the assistant's answer.

    Args:
        tokenizer: a tokenizer with our chat template.
        messages: the conversation; the last message is the user's or a tool's.

    Returns:
        The token ids. They end with the assistant's start token; after a tool's result they end with that result,
        because the assistant's turn goes on.

    Raises:
        ValueError: there is no message, or the last one is the assistant's. Upstream drops such an answer silently;
            here the caller has to leave it out.
    """
    if not messages:
        raise ValueError("the conversation is empty: there is nothing to answer")
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            "the last message is the assistant's own: leave it out (messages[:-1]) to have it answered anew, "
            "or take render_conversation for the ids of the whole conversation"
        )
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False))
