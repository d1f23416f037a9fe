"""The entry point for batches: many prompts and many samples per prompt, for RL rollouts and evaluations."""

from collections.abc import Callable, Sequence
from typing import Any

from nanochat_hf.generation.decoding import DecodingSession, evaluation_mode
from nanochat_hf.generation.prompts import Message, prompt_ids
from nanochat_hf.generation.tool_loop import Rollout
from nanochat_hf.tools.registry import run_call


def generate_with_tools(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Sequence[Message] | Sequence[int]],
    *,
    num_samples: int = 1,
    seed: int | None = None,
    batch_size: int = 64,
    context_length: int | None = None,
    tool: Callable[[str], str | None] | None = run_call,
    compiled: bool = False,
    progress: Callable[[int], Any] | None = None,
    **sampling: Any,
) -> list[list[Rollout]]:
    """Samples assistant turns; the tools answer the calls inside them.

    Args:
        model: a causal language model of transformers, on any device.
        tokenizer: its tokenizer. Tools work if it has nanochat's nine control tokens.
        conversations: message lists that end with the user's turn, or prompts as token ids.
        num_samples: turns per conversation. The prompt is read once; each turn samples its own first token.
        seed: the same call with the same seed gives the same turns; None takes torch's default generator.
        batch_size: rows that are decoded together. Conversations of similar length share a batch.
        context_length: limit of prompt and turn together, in tokens; default the model's `max_position_embeddings`. A
            turn that reaches it ends with "length".
        tool: call → result, or None to leave the call without an output; default: all of `nanochat_hf.tools.registry`.
            None switches tools off.
        compiled: compiles the steps of this project's models. It takes about a minute, so it pays for thousands of
            tokens.
        progress: called with the number of finished conversations after each batch, such as `tqdm.update`.
        sampling: the fields of [`Sampling`]: max_new_tokens, temperature, top_k, top_p, min_p.

    Returns:
        Per conversation, in the given order, its `num_samples` rollouts.

    Raises:
        ValueError: a prompt fills the whole context, or a sampling setting is out of range.
        UserError: message lists were given and the tokenizer has no chat template.
    """
    session = DecodingSession(
        model, tokenizer, seed=seed, context_length=context_length, tool=tool, compiled=compiled, **sampling
    )
    prompts = [prompt_ids(tokenizer, conversation) for conversation in conversations]
    for index, prompt in enumerate(prompts):
        if len(prompt) >= session.context_length:
            raise ValueError(
                f"conversation {index} has {len(prompt)} tokens, which leaves no room for an answer in a context of "
                f"{session.context_length}; shorten it (fit_conversation drops the oldest turns)"
            )
    turns = [[session.new_turn(prompt) for _ in range(num_samples)] for prompt in prompts]
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    conversations_per_batch = max(1, batch_size // num_samples)
    with evaluation_mode(model):
        for start in range(0, len(by_length), conversations_per_batch):
            chosen = by_length[start : start + conversations_per_batch]
            distinct: dict[tuple[int, ...], int] = {}
            prompt_of_conversation = [distinct.setdefault(tuple(prompts[index]), len(distinct)) for index in chosen]
            prompt_of_turn = [prompt for prompt in prompt_of_conversation for _ in range(num_samples)]
            batch = [turn for index in chosen for turn in turns[index]]
            for _ in session.decode(list(distinct), batch, prompt_of_turn):
                pass
            if progress is not None:
                progress(len(chosen))
    return [[turn.rollout(prompt) for turn in group] for group, prompt in zip(turns, prompts, strict=True)]
