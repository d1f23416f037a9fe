"""The batched loop: each distinct prompt is read once for all of its samples, finished rows leave the batch."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from nanochat_hf.generation.sampling import Sampling
from nanochat_hf.generation.turns import Turn


@torch.inference_mode()
def decode_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    turns: Sequence[Turn],
    prompt_of_turn: Sequence[int],
    sampling: Sampling,
    generator: torch.Generator | None = None,
    pad_token_id: int = 0,
) -> Iterator[None]:
    """Grows all `turns` to their ends; yields after every token, for those who stream.

    Args:
        prompts: P distinct prompts as token ids, of any lengths; shorter ones are padded on the left.
        turns: R turns, several of which may continue the same prompt.
        prompt_of_turn: for each turn the index of its prompt.
    """
    live = list(turns)
    cache = DynamicCache(config=model.config.get_text_config())
    ids, mask = pad_left(prompts, pad_token_id, model.device)  # [P, T]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    ragged = not mask.all()
    logits = _last_logits(model, ids, mask if ragged else None, positions, cache)  # [P, V]

    rows = torch.tensor(list(prompt_of_turn), device=model.device)
    if rows.tolist() != list(range(len(prompts))):
        cache.reorder_cache(rows)
        logits, mask, positions = logits[rows], mask[rows], positions[rows]
    positions = positions[:, -1:]  # [R, 1]
    while True:
        drawn = sampling.draw(logits, generator).tolist()
        column = [turn.add(token) for turn, token in zip(live, drawn, strict=True)]
        yield
        keep = [row for row, turn in enumerate(live) if turn.finish_reason is None]
        if not keep:
            return
        if len(keep) < len(live):
            rows = torch.tensor(keep, device=model.device)
            cache.reorder_cache(rows)
            mask, positions = mask[rows], positions[rows]
            live, column = [live[row] for row in keep], [column[row] for row in keep]
        ids = torch.tensor(column, device=model.device).unsqueeze(1)
        positions = positions + 1
        if ragged:
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
        logits = _last_logits(model, ids, mask if ragged else None, positions, cache)


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


def _last_logits(
    model: Any, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, cache: DynamicCache
) -> torch.Tensor:
    """Logits [B, V] in fp32 behind the last token of each row; `cache` takes in all of `ids` [B, T]."""
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1].float()
