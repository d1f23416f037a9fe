"""The two ways in: `generate_with_tools` for batches (RL rollouts, evaluation), `stream_chat` for one conversation."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nanochat_hf.generation.decoding import decode_batch
from nanochat_hf.generation.sampling import Sampling
from nanochat_hf.generation.turns import Turn, Vocabulary, decode
from nanochat_hf.settings import UserError
from nanochat_hf.tools.calculator import calculate

Message = dict[str, Any]


@dataclass(frozen=True)
class Rollout:
    """One sampled turn.

    Attributes:
        token_ids: the tokens after the prompt, the ending control token included where the model drew one.
        sampled: for each token, True where the model drew it and False where a tool's output was forced.
        messages: the new messages, that is one assistant's turn; content is a string, or parts where a tool was used.
        finish_reason: "stop" or "length".
        prompt_ids: the prompt as it was read.
        text: what the assistant says, without tool calls and outputs.
    """

    token_ids: list[int]
    sampled: list[bool]
    messages: list[Message]
    finish_reason: str
    prompt_ids: list[int]
    text: str


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed turn: its kind ("text", "python", "python_output" or, last of all, "end") and text.

    The last chunk carries the finished `rollout`.
    """

    type: str
    text: str
    rollout: Rollout | None = None


def generate_with_tools(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Sequence[Message] | Sequence[int]],
    *,
    num_samples: int = 1,
    seed: int | None = None,
    batch_size: int = 64,
    context_length: int | None = None,
    tool: Callable[[str], str | None] | None = calculate,
    compiled: bool = False,
    progress: Callable[[int], Any] | None = None,
    **sampling: Any,
) -> list[list[Rollout]]:
    """Samples assistant turns, with the calculator answering inside them.

    Args:
        model: a causal language model of transformers, on any device.
        tokenizer: its tokenizer. The calculator works where it has nanochat's nine control tokens.
        conversations: message lists that end with the user's turn, or prompts that are token ids already.
        num_samples: turns for each conversation; the prompt is read once, every first token is drawn on its own.
        seed: makes the draws repeatable for the same call; None draws afresh.
        batch_size: rows that decode together; conversations of like length are put together.
        context_length: longest prompt plus turn; default the model's `max_position_embeddings`. A turn that reaches
            it ends with "length".
        tool: expression → result, or None to leave the call unanswered; None switches tools off.
        compiled: compiles single steps of our own models, where thousands of tokens will make up for a minute's work.
        progress: called with the number of finished conversations after each batch, such as `tqdm.update`.
        sampling: the fields of [`Sampling`]: max_new_tokens, temperature, top_k, top_p, min_p.

    Returns:
        For each conversation, in order, its `num_samples` rollouts.

    Raises:
        ValueError: a prompt leaves no room for an answer.
    """
    settings = Sampling(**sampling)
    vocabulary = Vocabulary.of(tokenizer, model)
    limit = context_length or context_length_of(model)
    prompts = [prompt_ids(tokenizer, conversation) for conversation in conversations]
    for index, prompt in enumerate(prompts):
        if len(prompt) >= limit:
            raise ValueError(
                f"conversation {index} has {len(prompt)} tokens, which leaves no room for an answer in a context of "
                f"{limit}; shorten it (fit_conversation drops the oldest turns)"
            )
    generator = _generator(model, seed)
    turns: list[list[Turn]] = [
        [
            Turn(vocabulary, tokenizer, min(settings.max_new_tokens, limit - len(prompt)), tool)
            for _ in range(num_samples)
        ]
        for prompt in prompts
    ]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    per_batch = max(1, batch_size // num_samples)
    with _evaluating(model):
        for start in range(0, len(order), per_batch):
            chosen = order[start : start + per_batch]
            distinct: dict[tuple[int, ...], int] = {}
            rows = [distinct.setdefault(tuple(prompts[index]), len(distinct)) for index in chosen]
            batch = [turn for index in chosen for turn in turns[index]]
            prompt_of_turn = [row for row in rows for _ in range(num_samples)]
            for _ in decode_batch(
                model, list(distinct), batch, prompt_of_turn, settings, generator, compiled=compiled
            ):
                pass
            if progress is not None:
                progress(len(chosen))
    return [[_rollout(turn, prompt) for turn in group] for group, prompt in zip(turns, prompts, strict=True)]


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
    with _evaluating(model):
        for _ in decode_batch(model, [prompt], [turn], [0], settings, _generator(model, seed), compiled=compiled):
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
    yield Chunk("end", "", _rollout(turn, prompt))


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


def prompt_ids(tokenizer: Any, conversation: Sequence[Message] | Sequence[int]) -> list[int]:
    """The prompt of a conversation, ending where the assistant speaks; ids pass through."""
    if len(conversation) and not isinstance(conversation[0], dict):
        return [int(token) for token in conversation]
    if tokenizer.chat_template is None:
        raise UserError("this tokenizer has no chat template; chat needs a model that was trained on conversations")
    return list(tokenizer.apply_chat_template(list(conversation), add_generation_prompt=True, return_dict=False))


def load_for_chat(checkpoint: str | Path, device: str | None = None, dtype: str | None = None) -> tuple[Any, Any]:
    """Loads model and tokenizer from a checkpoint folder or a Hub id, ready to sample from.

    Args:
        device: such as "cpu" or "cuda:0"; default the GPU where there is one.
        dtype: such as "bfloat16"; default the checkpoint's own.

    Raises:
        UserError: nothing loadable is there.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import nanochat_hf  # noqa: F401  registers the model with the Auto classes

    check_checkpoint(checkpoint)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(checkpoint))
        model = AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype=_dtype(dtype))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot load {checkpoint} ({reason}); give a checkpoint folder such as runs/quickstart/rl, or a Hub id"
        ) from None
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return model.to(device).eval(), tokenizer
    except (RuntimeError, AssertionError) as error:  # torch's ways of saying that it has no such device
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"cannot put the model on device {device!r} ({reason}); --device cpu always works") from None


def check_checkpoint(checkpoint: str | Path) -> None:
    """Raises UserError where something is neither a checkpoint folder nor can be the id of a model on the Hub."""
    folder, name = Path(checkpoint), str(checkpoint)
    if folder.exists() and not (folder / "config.json").exists():
        stages = sorted(path.parent.name for path in folder.glob("*/config.json"))
        hint = f"; it holds {', '.join(stages)}: name one of these" if stages else "; give the folder of a stage"
        raise UserError(f"{checkpoint} is not a checkpoint folder (no config.json in it){hint}")
    if not folder.exists() and not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", name):
        raise UserError(
            f"there is no folder {checkpoint}, and no model on the Hub can have that name; give a checkpoint folder "
            "such as runs/quickstart/rl, or a Hub id"
        )


def _dtype(name: str | None) -> Any:
    dtype = getattr(torch, name or "", None)
    if name not in (None, "auto") and not isinstance(dtype, torch.dtype):
        raise UserError(f"there is no dtype {name!r}; use float32, bfloat16 or float16")
    return dtype or "auto"


def context_length_of(model: Any) -> int:
    """Tokens that the model was trained to read at once."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2048


def _rollout(turn: Turn, prompt: list[int]) -> Rollout:
    text = "".join(part["text"] for part in turn.parts() if part["type"] == "text")
    return Rollout(turn.token_ids, turn.sampled, [turn.message()], turn.finish_reason or "length", prompt, text)


def _generator(model: Any, seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator(device=model.device).manual_seed(seed)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
