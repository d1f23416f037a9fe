"""Prompts: from conversations to token ids, and what to leave out when a conversation is too long."""

from collections.abc import Sequence
from typing import Any

from nanochat_hf.settings import UserError

Message = dict[str, Any]  # {"role": ..., "content": text or a list of parts}


def prompt_ids(tokenizer: Any, conversation: Sequence[Message] | Sequence[int]) -> list[int]:
    """Returns the token ids of a conversation, up to where the assistant's answer begins.

    A prompt that is token ids already is returned as it is.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    if len(conversation) and not isinstance(conversation[0], dict):
        return [int(token) for token in conversation]
    if tokenizer.chat_template is None:
        raise UserError("this tokenizer has no chat template; chat needs a model that was trained on conversations")
    return list(tokenizer.apply_chat_template(list(conversation), add_generation_prompt=True, return_dict=False))


def fit_conversation(
    tokenizer: Any, messages: Sequence[Message], context_length: int, max_new_tokens: int = 1
) -> tuple[list[Message], int]:
    """Leaves out the oldest turns until the prompt and an answer of `max_new_tokens` fit in the context.

    A system message and the last user message always stay. The answer reserves at most half of the context.

    Args:
        context_length: tokens of prompt and answer together.
        max_new_tokens: tokens to reserve for the answer.

    Returns:
        The messages to use, and the number of messages that were left out.

    Raises:
        UserError: the last message alone is too long.
    """
    messages = list(messages)
    max_prompt = context_length - min(max_new_tokens, context_length // 2)
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
