"""Bits per byte: the loss in units that do not depend on the tokenizer.

It is the sum of -log2 p(token), divided by the number of UTF-8 bytes of the tokens. There are two measurements with
two names, because their numbers must not be compared with each other:

- `bits_per_byte` scores every document from its own beginning; nothing is cropped. It works for every model.
- `packed_bits_per_byte` scores rows as the pretraining loader packs them (nanochat's validation number). There a
  document may be cropped, and its tokens see the documents before it in the row.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_hf.evals.items import digest_of, pack
from nanochat_hf.evals.metrics import formulas
from nanochat_hf.evals.scoring import NOT_NUMBERS, distributed_rank, gather_sum, pad_right, plan_batches
from nanochat_hf.settings import UserError

IGNORED = -100
# A gigabyte in fp32. Training never holds all logits of a batch, so a batch that fits there may be too large here.
MAX_LOGITS_PER_FORWARD = 2**28


@torch.inference_mode()
def packed_bits_per_byte(
    model: torch.nn.Module,
    batches: Iterable[dict[str, Tensor]],
    byte_lengths: Sequence[int] | Tensor,
    *,
    steps: int | None = None,
) -> float:
    """Bits per byte over packed rows, summed over all processes.

    Args:
        model: a causal language model.
        batches: `input_ids` [B, T] with `shift_labels` [B, T], the next tokens as the pretraining loader gives them.
            Or with `labels` [B, T] in the transformers convention, which are shifted here. -100 is not scored.
        byte_lengths: bytes of each token of the vocabulary [V]; tokens with 0 bytes (control tokens) do not count.
        steps: number of batches taken; default all.

    Returns:
        Bits per byte; infinity if no token with bytes was scored.
    """
    device = next(model.parameters()).device
    byte_lengths = torch.as_tensor(byte_lengths).to(device=device, dtype=torch.long)
    exact = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    nats = torch.zeros((), dtype=exact, device=device)
    num_bytes = torch.zeros((), dtype=exact, device=device)
    for batch in islice(batches, steps):
        ids_BT = batch["input_ids"].to(device)
        targets = batch["shift_labels"] if "shift_labels" in batch else batch.get("labels", batch["input_ids"])[:, 1:]
        targets = targets.to(device)
        bytes_BT = torch.where(targets >= 0, byte_lengths[targets.clamp(min=0)], 0)
        rows_per_forward = max(1, MAX_LOGITS_PER_FORWARD // (ids_BT.shape[1] * len(byte_lengths)))
        for start in range(0, len(ids_BT), rows_per_forward):
            rows = slice(start, start + rows_per_forward)
            logits_BTV = model(input_ids=ids_BT[rows], use_cache=False).logits[:, : targets.shape[1]]
            for logits, labels, sizes in zip(logits_BTV, targets[rows], bytes_BT[rows], strict=True):
                losses = F.cross_entropy(logits.float(), labels, reduction="none", ignore_index=IGNORED)
                nats += losses[sizes > 0].sum(dtype=exact)
        num_bytes += bytes_BT.sum()
    nats_all, bytes_all = gather_sum(torch.stack([nats, num_bytes])).tolist()
    return formulas.bits_per_byte(nats_all, bytes_all)


@torch.inference_mode()
def bits_per_byte(
    model: torch.nn.Module,
    encode: Callable[[list[str]], list[list[int]]],
    documents: Iterable[str],
    *,
    max_length: int,
    max_tokens: int = 16384,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, Any]:
    """Bits per byte of whole documents, for any model and tokenizer.

    A document longer than the context is cut into consecutive windows of `max_length` targets. Every token is scored
    exactly once; the first of a window sees only the last token of the window before. Bytes are those of the text.

    Args:
        model: a causal language model.
        encode: texts → token ids, each beginning with the token that begins a document for this model.
        documents: the texts; empty ones are left out. Several processes share them.
        max_length: longest input in tokens.
        max_tokens: padded tokens per forward pass.
        progress: called after each batch with the number of documents that it finished.

    Returns:
        `bits_per_byte` (infinity without any text) with its 95 % interval, `nats_per_token`, `bytes_per_token`, the
        numbers of `documents` and `bytes`, and `items`: nats and bytes of each document (see `evals.items`).

    Raises:
        UserError: the model computes NaN.
    """
    device = next(model.parameters()).device
    rank, world = distributed_rank()
    everything = [text for text in documents if text]
    own = range(rank, len(everything), world)
    texts = [everything[index] for index in own]
    nats_of_document = torch.zeros(len(everything), dtype=torch.float64)
    windows, document_of_window = [], []
    windows_left = Counter[int]()  # per document that is not finished
    for document, ids in enumerate(encode(texts) if texts else []):
        cut = [ids[start : start + max_length + 1] for start in range(0, len(ids) - 1, max_length)]
        windows += cut
        document_of_window += [document] * len(cut)
        windows_left[document] = len(cut)
    nats = torch.zeros((), dtype=torch.float64)
    for batch in plan_batches([len(window) for window in windows], max_tokens):
        rows = [windows[index] for index in batch]
        ids_BT = pad_right(rows, 0, device)
        targets = pad_right([row[1:] for row in rows], IGNORED, device)
        logits = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
        for row in range(len(rows)):
            losses = F.cross_entropy(logits[row].float(), targets[row], reduction="sum", ignore_index=IGNORED)
            nats += losses.cpu().double()
            nats_of_document[own[document_of_window[batch[row]]]] += losses.cpu().double()
        windows_left.subtract(document_of_window[index] for index in batch)
        if progress:
            progress(sum(windows_left[one] == 0 for one in {document_of_window[index] for index in batch}))
    num_bytes = sum(len(text.encode("utf-8")) for text in texts)
    tokens = sum(len(window) - 1 for window in windows)
    sums = torch.tensor([float(nats), num_bytes, tokens, len(texts)], dtype=torch.float64)
    nats_all, bytes_all, tokens_all, texts_all = gather_sum(sums.to(device)).tolist()
    if math.isnan(nats_all):
        raise UserError(NOT_NUMBERS)
    nats_of_each = gather_sum(nats_of_document.to(device)).tolist()
    bytes_of_each = [len(text.encode("utf-8")) for text in everything]
    low, high = formulas.bits_per_byte_interval(nats_of_each, bytes_of_each)
    return {
        "bits_per_byte": formulas.bits_per_byte(nats_all, bytes_all),
        "bits_per_byte_low": low,
        "bits_per_byte_high": high,
        "nats_per_token": nats_all / max(1.0, tokens_all),
        "bytes_per_token": bytes_all / max(1.0, tokens_all),
        "documents": texts_all,
        "bytes": bytes_all,
        "items": {
            "digest": digest_of(enumerate(everything)),
            "nats": pack(nats_of_each),
            "bytes": pack(bytes_of_each),
        },
    }
