"""One assistant turn as a stream of text: the entry point of the terminal chat, the Space and the server."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_hf.generation.batch import Message, Rollout, evaluating, generator_for, prompt_ids, rollout_of
from nanochat_hf.generation.decoding import decode_batch
from nanochat_hf.generation.loading import context_length_of
from nanochat_hf.generation.sampling import Sampling
from nanochat_hf.generation.tool_loop import Turn, Vocabulary, decode
from nanochat_hf.settings import UserError
from nanochat_hf.tools.calculator import calculate


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed turn: its kind ("text", "python", "python_output" or, last of all, "end") and text.

    The last chunk carries the finished `rollout`.
    """

    type: str
    text: str
    rollout: Rollout | None = None


def stream_chat(
    model: Any,
    tokenizer: Any,
    messages: Sequence[Message] | Sequence[int],
    *,
    seed: int | None = None,
    context_length: int | None = None,
    tool: Callable[[str], str | None] | None = calculate,
    compiled: bool = False,
    **sampling: Any,
) -> Iterator[Chunk]:
    """Streams one assistant's turn as chunks of whole characters, tool calls and outputs told apart from text.

    The oldest turns are left out where the conversation does not fit (see [`fit_conversation`]); a prompt of token ids
    is taken as it is. Closing the iterator stops the generation. Arguments as in [`generate_with_tools`].
    """
    settings = Sampling(**sampling)
    limit = context_length or context_length_of(model)
    if len(messages) and isinstance(messages[0], dict):
        messages, _ = fit_conversation(tokenizer, messages, limit, settings.max_new_tokens)
    prompt = prompt_ids(tokenizer, messages)
    vocabulary = Vocabulary.of(tokenizer, model)
    turn = Turn(vocabulary, tokenizer, min(settings.max_new_tokens, limit - len(prompt)), tool)
    kind, segment, shown = "text", [], 0
    with evaluating(model):
        for _ in decode_batch(model, [prompt], [turn], [0], settings, generator_for(model, seed), compiled=compiled):
            token = turn.token_ids[-1]
            if token in vocabulary.kinds:
                if tail := decode(tokenizer, segment)[shown:]:
                    yield Chunk(kind, tail)
                kind, segment, shown = vocabulary.kinds[token] or "text", [], 0
            elif token not in vocabulary.silent and token not in vocabulary.stop:
                segment.append(token)
                text = decode(tokenizer, segment)
                if len(text) > shown and not text.endswith("\ufffd"):  # a character may be spread over tokens
                    yield Chunk(kind, text[shown:])
                    shown = len(text)
    if tail := decode(tokenizer, segment)[shown:]:
        yield Chunk(kind, tail)
    yield Chunk("end", "", rollout_of(turn, prompt))


def fit_conversation(
    tokenizer: Any, messages: Sequence[Message], context_length: int, max_new_tokens: int = 1
) -> tuple[list[Message], int]:
    """Leaves out the oldest turns until the prompt and a turn of `max_new_tokens` fit in the context.

    A system message and the last user message always stay. At most half of the context is kept free for the answer.

    Returns:
        The messages to use, and how many were left out.

    Raises:
        UserError: even the last message alone is too long.
    """
    messages = list(messages)
    room = context_length - min(max_new_tokens, context_length // 2)
    head = messages[:1] if messages and messages[0]["role"] == "system" else []
    turns = messages[len(head) :]
    dropped = 0
    while (length := len(prompt_ids(tokenizer, head + turns))) > room:
        later_users = [index for index, message in enumerate(turns) if index and message["role"] == "user"]
        if not later_users:
            raise UserError(
                f"the message is too long: the prompt has {length} tokens and there is room for {room}; shorten it"
            )
        dropped += later_users[0]
        turns = turns[later_users[0] :]
    return head + turns, dropped
