"""Batches of assistant turns with tools: the entry point of RL rollouts and evaluations."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from nanochat_hf.generation.decoding import decode_batch
from nanochat_hf.generation.loading import context_length_of
from nanochat_hf.generation.sampling import Sampling
from nanochat_hf.generation.tool_loop import Turn, Vocabulary
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
    generator = generator_for(model, seed)
    turns: list[list[Turn]] = [
        [
            Turn(vocabulary, tokenizer, min(settings.max_new_tokens, limit - len(prompt)), tool)
            for _ in range(num_samples)
        ]
        for prompt in prompts
    ]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    per_batch = max(1, batch_size // num_samples)
    with evaluating(model):
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
    return [[rollout_of(turn, prompt) for turn in group] for group, prompt in zip(turns, prompts, strict=True)]


def prompt_ids(tokenizer: Any, conversation: Sequence[Message] | Sequence[int]) -> list[int]:
    """The prompt of a conversation, ending where the assistant speaks; ids pass through."""
    if len(conversation) and not isinstance(conversation[0], dict):
        return [int(token) for token in conversation]
    if tokenizer.chat_template is None:
        raise UserError("this tokenizer has no chat template; chat needs a model that was trained on conversations")
    return list(tokenizer.apply_chat_template(list(conversation), add_generation_prompt=True, return_dict=False))


def rollout_of(turn: Turn, prompt: list[int]) -> Rollout:
    text = "".join(part["text"] for part in turn.parts() if part["type"] == "text")
    return Rollout(turn.token_ids, turn.sampled, [turn.message()], turn.finish_reason or "length", prompt, text)


def generator_for(model: Any, seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator(device=model.device).manual_seed(seed)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
