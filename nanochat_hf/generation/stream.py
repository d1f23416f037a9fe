"""The entry point for streams: one assistant turn, shown while it is generated (terminal chat, Space, server)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_hf.generation.decoding import DecodingSession, evaluation_mode
from nanochat_hf.generation.prompts import Message, fit_conversation, prompt_ids
from nanochat_hf.generation.tool_loop import Rollout, decode_exactly
from nanochat_hf.tools.registry import run_call


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed turn.

    Attributes:
        type: "text", "python" (a tool call), "python_output", or "end" for the last chunk.
        text: whole characters; empty in the last chunk.
        rollout: the finished turn, in the last chunk only.
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
    tool: Callable[[str], str | None] | None = run_call,
    compiled: bool = False,
    **sampling: Any,
) -> Iterator[Chunk]:
    """Streams one assistant turn as chunks of whole characters; tool calls and outputs are chunks of their own type.

    Closing the iterator stops the generation.

    Args:
        messages: a conversation that ends with the user's turn, or a prompt as token ids. If a conversation is too
            long, its oldest turns are left out (see [`fit_conversation`]); token ids are taken as they are.

    The other arguments are those of [`generate_with_tools`].

    Raises:
        UserError: the last message alone is too long, or the tokenizer has no chat template.
        ValueError: a sampling setting is out of range.
    """
    session = DecodingSession(
        model, tokenizer, seed=seed, context_length=context_length, tool=tool, compiled=compiled, **sampling
    )
    if len(messages) and isinstance(messages[0], dict):
        messages, _ = fit_conversation(tokenizer, messages, session.context_length, session.sampling.max_new_tokens)
    prompt = prompt_ids(tokenizer, messages)
    control, turn = session.control, session.new_turn(prompt)
    kind, segment, shown = "text", [], 0  # of the current segment: its kind, its token ids, the characters shown
    with evaluation_mode(model):
        for _ in session.decode([prompt], [turn], [0]):
            token = turn.token_ids[-1]
            if token in control.segment_kinds:
                if rest := decode_exactly(tokenizer, segment)[shown:]:
                    yield Chunk(kind, rest)
                kind, segment, shown = control.segment_kinds[token], [], 0
            elif token not in control.hidden and token not in control.stop:
                segment.append(token)
                text = decode_exactly(tokenizer, segment)
                # A character may need several tokens; until it is complete it decodes to the replacement character.
                if len(text) > shown and not text.endswith("\ufffd"):
                    yield Chunk(kind, text[shown:])
                    shown = len(text)
    if rest := decode_exactly(tokenizer, segment)[shown:]:
        yield Chunk(kind, rest)
    yield Chunk("end", "", turn.rollout(prompt))
