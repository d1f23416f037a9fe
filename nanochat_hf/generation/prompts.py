"""Prompts: from conversations to token ids, and what to leave out when a conversation is too long."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from nanochat_hf.settings import UserError

Message = dict[str, Any]  # {"role": ..., "content": text or a list of parts}


def prompt_ids(tokenizer: Any, conversation: Sequence[Message] | Sequence[int]) -> list[int]:
    """Returns the token ids of a conversation, up to where the assistant's answer begins.

    A prompt that is token ids already is returned as it is.

    Raises:
        UserError: the tokenizer has no chat template, or it refuses the conversation.
    """
    if len(conversation) and not isinstance(conversation[0], dict):
        return [int(token) for token in conversation]
    if tokenizer.chat_template is None:
        raise UserError("this tokenizer has no chat template; chat needs a model that was trained on conversations")
    return list(rendered(tokenizer, list(conversation), add_generation_prompt=True, return_dict=False))


def rendered(tokenizer: Any, messages: list[Message], **options: Any) -> Any:
    """Returns what `apply_chat_template` makes of a conversation.

    Raises:
        UserError: the template refuses it, such as one without system messages.
    """
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except Exception as error:  # what a template does with a conversation is its author's choice
        system = bool(messages) and messages[0]["role"] == "system"
        remedy = "leave the system message out" if system else "change its messages"
        raise UserError(f"the model's chat template refuses this conversation ({error}); {remedy}") from None


def encode_as_text(tokenizer: Any, text: str) -> list[int]:
    """Encodes text in which the name of a control token stays text: it is cut after its first character.

    The tokenizer's own `split_special_tokens` would change a setting that all threads share.
    """
    names = "|".join(map(re.escape, tokenizer.get_added_vocab())) or "(?!)"
    cuts = [0, *(found.start() + 1 for found in re.finditer(f"(?={names})", text)), len(text)]
    pieces = [text[start:end] for start, end in pairwise(cuts)]
    return [token for piece in pieces for token in tokenizer.encode(piece, add_special_tokens=False)]


def fit_conversation(
    tokenizer: Any, messages: Sequence[Message], context_length: int, max_new_tokens: int = 1
) -> tuple[list[Message], int]:
    """Leaves out the oldest turns until the prompt and an answer fit in the context.

    A system message and the last user message always stay. How much is kept free for the answer: [`answer_reserve`].

    Args:
        messages: a conversation; an assistant's message may have its tokens as `token_ids`.
        context_length: tokens of prompt and answer together.
        max_new_tokens: the longest answer, in tokens.

    Returns:
        The messages to use, and the number of messages that were left out.

    Raises:
        UserError: the last message alone is too long.
    """
    max_prompt = context_length - answer_reserve(tokenizer, messages, context_length, max_new_tokens)
    messages = [{name: value for name, value in message.items() if name != "token_ids"} for message in messages]
    system = messages[:1] if messages and messages[0]["role"] == "system" else []
    turns = messages[len(system) :]
    dropped = 0
    while (length := len(prompt_ids(tokenizer, system + turns))) > max_prompt:
        later_users = [index for index, message in enumerate(turns) if index and message["role"] == "user"]
        if not later_users:
            raise UserError(
                f"the message is too long: the prompt has {length} tokens and there is room for {max_prompt}; "
                "shorten it"
            )
        dropped += later_users[0]
        turns = turns[later_users[0] :]
    return system + turns, dropped


def answer_reserve(tokenizer: Any, messages: Sequence[Message], context_length: int, max_new_tokens: int) -> int:
    """Returns how many tokens of the context to keep free for the next answer.

    It is a quarter of the context, or more if an earlier answer of this conversation was longer; never more than half
    of the context or than `max_new_tokens`. To reserve all of `max_new_tokens` would cost short contexts their
    history: answers are seldom that long.

    Args:
        tokenizer: counts the tokens of answers that come without `token_ids`.
    """
    most = min(max_new_tokens, context_length // 2)
    least = min(most, context_length // 4)
    if least == most:
        return most
    answers = [message for message in messages if message["role"] == "assistant"]
    return min(most, max([least, *(_tokens_of(tokenizer, message) for message in answers)]))


def _tokens_of(tokenizer: Any, message: Message) -> int:
    if message.get("token_ids"):
        return len(message["token_ids"])
    content = message.get("content") or ""
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return len(tokenizer.encode(text, add_special_tokens=False))
