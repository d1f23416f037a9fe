"""The batched loop: each distinct prompt is read once for all of its samples, finished rows leave the batch."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from nanochat_hf.generation.fast_decoder import ForwardSteps, NanochatSteps
from nanochat_hf.generation.sampling import Sampling
from nanochat_hf.generation.tool_loop import Turn

# Leaving out rows copies the caches of all others, so it waits until this share of the batch is done.
DONE_SHARE = 0.25


@torch.inference_mode()
def decode_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    turns: Sequence[Turn],
    prompt_of_turn: Sequence[int],
    sampling: Sampling,
    generator: torch.Generator | None = None,
    pad_token_id: int = 0,
    compiled: bool = False,
) -> Iterator[None]:
    """Grows all `turns` to their ends; yields after every token, for those who stream.

    Args:
        prompts: P distinct prompts as token ids, of any lengths; shorter ones are padded on the left.
        turns: R turns, several of which may continue the same prompt.
        prompt_of_turn: for each turn the index of its prompt.
        compiled: compiles the steps of our own models; other models' steps stay as they are.
    """
    rows = list(turns)
    ids, mask = pad_left(prompts, pad_token_id, model.device)  # [P, T]
    longest = ids.shape[1] + max(turn.max_tokens for turn in rows)
    steps = NanochatSteps(model, longest, compiled) if NanochatSteps.fit(model) else ForwardSteps(model)
    logits = steps.prefill(ids, mask, prompt_of_turn)  # [R, V]
    soft_cap = None  # the prompt was read by the model's forward, which has applied its own
    while True:
        drawn = sampling.draw(logits, generator, soft_cap).tolist()
        column = [
            turn.add(token) if turn.finish_reason is None else token for turn, token in zip(rows, drawn, strict=True)
        ]
        yield
        live = [row for row, turn in enumerate(rows) if turn.finish_reason is None]
        if not live:
            return
        if len(rows) - len(live) >= DONE_SHARE * len(rows):
            steps.select(torch.tensor(live, device=model.device))
            rows, column = [rows[row] for row in live], [column[row] for row in live]
        logits, soft_cap = steps.step(torch.tensor(column, device=model.device)), steps.soft_cap


def pad_left(
    prompts: Sequence[Sequence[int]], pad_token_id: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [P, T] of prompts that all end in the last column."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_token_id, dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
