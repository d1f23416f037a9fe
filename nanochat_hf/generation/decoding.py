"""The batched decoding loop, and the set-up that the two entry points share.

Each distinct prompt is read once for all of its samples. Finished rows leave the batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from nanochat_hf.generation.fast_decoder import FastDecoder, WeightStore
from nanochat_hf.generation.forward_decoder import ForwardDecoder
from nanochat_hf.generation.graphed_decoder import GraphedDecoder
from nanochat_hf.generation.loading import DEFAULT_CONTEXT_LENGTH, context_length_of
from nanochat_hf.generation.sampling import Sampling
from nanochat_hf.generation.tool_loop import ControlTokens, Turn

# Removing rows copies the caches of all others. So it waits until this share of the batch is finished.
FINISHED_SHARE = 0.25


class DecodingSession:
    """What all turns of one call share: model, tokenizer, sampling settings, limits, tool and random numbers.

    The arguments are those of [`generate_with_tools`].

    Attributes:
        sampling: the sampling settings.
        control: the tokenizer's control tokens.
        context_length: tokens of prompt and turn together, at most.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        seed: int | None,
        context_length: int | None,
        tool: Callable[[str], str | None] | None,
        compiled: bool,
        **sampling: Any,
    ):
        self.model, self.tokenizer, self.tool, self.compiled = model, tokenizer, tool, compiled
        self.sampling = Sampling(**sampling)
        self.control = ControlTokens.from_tokenizer(tokenizer, model)
        self.context_length = context_length or context_length_of(model) or DEFAULT_CONTEXT_LENGTH
        self.store = WeightStore(model)
        self.generator = None if seed is None else torch.Generator(device=model.device).manual_seed(seed)

    def new_turn(self, prompt: Sequence[int]) -> Turn:
        """Returns an empty turn after this prompt; it ends at `max_new_tokens` or at the end of the context."""
        max_tokens = min(self.sampling.max_new_tokens, self.context_length - len(prompt))
        return Turn(self.control, self.tokenizer, max_tokens, self.tool)

    def decode(
        self, prompts: Sequence[Sequence[int]], turns: Sequence[Turn], prompt_of_turn: Sequence[int]
    ) -> Iterator[None]:
        """Generates these turns to their ends; see [`decode_batch`]."""
        return decode_batch(
            self.model,
            prompts,
            turns,
            prompt_of_turn,
            self.sampling,
            self.generator,
            compiled=self.compiled,
            store=self.store,
        )


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
    store: WeightStore | None = None,
) -> Iterator[None]:
    """Generates all `turns` to their ends. Yields after every token, so that a caller can stream.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        prompts: P distinct prompts as token ids, of any lengths; shorter ones are padded on the left.
        turns: R turns; several of them may continue the same prompt.
        prompt_of_turn: per turn, the index of its prompt.
        sampling: how tokens are sampled.
        generator: of the random numbers, on the model's device; None takes torch's default generator.
        compiled: compiles the steps of this project's models; the steps of other models stay as they are.
        store: the fast decoder's weights, where several batches share them.
    """
    rows = list(turns)
    ids, mask = pad_left(prompts, pad_token_id, model.device)  # [P, T]
    capacity = ids.shape[1] + max(turn.max_tokens for turn in rows)
    decoder = pick_decoder(model, capacity, compiled, store)
    logits = decoder.prefill(ids, mask, prompt_of_turn)  # [R, V]
    soft_cap = None  # the model's own forward read the prompt, and it applies the soft cap
    while True:
        sampled = sampling.draw(logits, generator, soft_cap).tolist()
        tokens = [
            turn.add(token) if turn.finish_reason is None else token for turn, token in zip(rows, sampled, strict=True)
        ]
        yield
        unfinished = [row for row, turn in enumerate(rows) if turn.finish_reason is None]
        if not unfinished:
            return
        if len(rows) - len(unfinished) >= FINISHED_SHARE * len(rows):
            decoder.select(torch.tensor(unfinished, device=model.device))
            rows, tokens = [rows[row] for row in unfinished], [tokens[row] for row in unfinished]
        logits, soft_cap = decoder.step(torch.tensor(tokens, device=model.device)), decoder.soft_cap


def pick_decoder(
    model: Any, capacity: int, compiled: bool = False, store: WeightStore | None = None
) -> FastDecoder | ForwardDecoder:
    """Returns the fastest decoder for a batch of this model; the arguments are those of [`FastDecoder`].

    Models of other classes step through their own forward. On a GPU, steps that are not compiled become CUDA graphs.
    """
    if not FastDecoder.supports(model):
        return ForwardDecoder(model)
    graphed = model.device.type == "cuda" and not compiled
    return (GraphedDecoder if graphed else FastDecoder)(model, capacity, compiled, store)


def pad_left(
    prompts: Sequence[Sequence[int]], pad_token_id: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads P prompts on the left to the longest, T tokens; returns ids and mask, both int64 [P, T]."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_token_id, dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Puts the model in evaluation mode, and back into its former mode at the end."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
