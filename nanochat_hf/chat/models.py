"""A model to talk to: the interface that the terminal and the page use, and a checkpoint in this process."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from nanochat_hf.settings import CHAT_SAMPLING, UserError, find_checkpoint

Message = dict[str, Any]  # {"role": ..., "content": text or a list of parts}
PART_TYPES = ("text", "python", "python_output")


@dataclass(frozen=True)
class Piece:
    """A piece of an answer that is being written.

    Attributes:
        kind: "text", "python" (a tool call) or "python_output" (its result).
        text: whole characters.
    """

    kind: str
    text: str


@dataclass(frozen=True)
class Answer:
    """A finished answer.

    Attributes:
        content: text, or a list of parts if a tool was used.
        finish_reason: "stop" if the model ended it, "length" if a limit did.
        token_ids: its tokens, the ending control token included; empty where they are not known.
    """

    content: str | list[dict[str, str]]
    finish_reason: str = "stop"
    token_ids: list[int] = field(default_factory=list)

    def message(self) -> Message:
        """Returns the answer as an assistant message, with its tokens where they are known."""
        message: Message = {"role": "assistant", "content": self.content}
        return {**message, "token_ids": self.token_ids} if self.token_ids else message


class Model(Protocol):
    """A model to talk to.

    Attributes:
        name: how to call it in a title.
    """

    name: str

    def fit(self, messages: Sequence[Message], max_new_tokens: int) -> tuple[list[Message], int]:
        """Leaves out the oldest messages until the rest fits in the context.

        Returns:
            The messages to use, and how many were left out.

        Raises:
            UserError: the last message alone is too long.
        """

    def answer(self, messages: Sequence[Message], **sampling: Any) -> Iterator[Piece | Answer]:
        """Yields the pieces of the answer, and at the end the whole [`Answer`].

        Args:
            messages: a conversation that ends with the user's message.
            sampling: `seed` and the fields of `nanochat_hf.generation.Sampling`.

        Raises:
            UserError: there is no answer; the message says why.
        """


class LocalModel:
    """A checkpoint, loaded in this process.

    Attributes:
        name: folder or Hub id, and the revision where one is given.
        model, tokenizer: of transformers.
        context_length: tokens of a conversation, at most.
        sampling: how this checkpoint is sampled where the user does not choose.
    """

    def __init__(
        self, checkpoint: str, device: str | None = None, dtype: str | None = None, revision: str | None = None
    ):
        """Loads the checkpoint.

        Raises:
            UserError: it cannot be loaded.
        """
        from nanochat_hf.generation import DEFAULT_CONTEXT_LENGTH, context_length_of, load_checkpoint
        from nanochat_hf.generation.sampling import default_sampling as checkpoint_sampling

        find_checkpoint(checkpoint, revision)
        self.name = f"{checkpoint}@{revision}" if revision else str(checkpoint)
        self.model, self.tokenizer = load_checkpoint(checkpoint, device=device, dtype=dtype, revision=revision)
        self.context_length = context_length_of(self.model) or DEFAULT_CONTEXT_LENGTH
        self.sampling = checkpoint_sampling(self.model)

    def fit(self, messages: Sequence[Message], max_new_tokens: int) -> tuple[list[Message], int]:
        """See [`Model.fit`]. A system message always stays."""
        from nanochat_hf.generation import fit_conversation

        known = [{**for_model(message), "token_ids": message.get("token_ids")} for message in messages]
        kept, dropped = fit_conversation(self.tokenizer, known, self.context_length, max_new_tokens)
        system = len(messages) > 0 and messages[0]["role"] == "system"
        rest = list(messages[1:] if system else messages)[dropped:]
        assert len(kept) == len(rest) + system
        return [*messages[:system], *rest], dropped

    def answer(self, messages: Sequence[Message], **sampling: Any) -> Iterator[Piece | Answer]:
        """See [`Model.answer`]. Closing the iterator stops the generation."""
        from nanochat_hf.generation import stream_chat
        from nanochat_hf.generation.prompts import prompt_ids

        ids = prompt_ids(self.tokenizer, [for_model(message) for message in messages])
        if len(ids) >= self.context_length:
            raise UserError("the conversation fills the model's context; start a new one, or shorten the message")
        for chunk in stream_chat(self.model, self.tokenizer, ids, **sampling):
            if chunk.rollout is None:
                yield Piece(chunk.type, chunk.text)
            else:
                rollout = chunk.rollout
                yield Answer(rollout.messages[0]["content"], rollout.finish_reason, list(rollout.token_ids))


def default_sampling(model: Model) -> dict[str, Any]:
    """Returns temperature, top_k, top_p and min_p where the user does not choose: the model's own, if it has any."""
    return {**CHAT_SAMPLING, **(getattr(model, "sampling", None) or {})}


def for_model(message: Message) -> Message:
    """Returns a message with the keys that a chat template reads."""
    known = ("role", "content", "tool_calls", "tool_call_id", "name")
    return {key: message[key] for key in known if key in message}


def read_message(message: Any) -> Message:
    """Checks a message that came from a file or a browser, and returns it with its known keys only.

    Raises:
        UserError: it is no message of a conversation.
    """
    if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
        raise UserError("this is not a conversation: each message needs a role, system, user or assistant")
    role, content = message["role"], message.get("content")
    if isinstance(content, list) and role == "assistant":
        wrong = [
            part
            for part in content
            if not isinstance(part, dict)
            or part.get("type") not in PART_TYPES
            or not isinstance(part.get("text"), str)
        ]
        if wrong:
            raise UserError(f"this is not a conversation: a part needs a text and a type, {', '.join(PART_TYPES)}")
        content = [{"type": part["type"], "text": part["text"]} for part in content]
    elif not isinstance(content, str):
        raise UserError("this is not a conversation: each message needs a content, which is text")
    checked: Message = {"role": role, "content": content}
    ids = message.get("token_ids")
    if role == "assistant" and isinstance(ids, list) and all(type(one) is int and one >= 0 for one in ids):
        checked["token_ids"] = ids
    return checked


def clean(text: str) -> str:
    """Returns text without what no encoder takes: single surrogates, which stand for bytes that are no UTF-8."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)
