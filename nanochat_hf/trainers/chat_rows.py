"""Conversations → rows of equal length, made once and kept on disk until the stage is finished.

So every process, and every resumed run, reads the same rows in the same order.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from nanochat_hf.data.fingerprints import contents
from nanochat_hf.data.packing import IGNORED, ChatPacking, pack_conversations
from nanochat_hf.generation.chat_format import ChatFormat
from nanochat_hf.progress import progress_bar
from nanochat_hf.settings import UserError
from nanochat_hf.tasks import fingerprints_of
from nanochat_hf.tasks.mixtures import TaskMixture
from nanochat_hf.trainers import disks
from nanochat_hf.trainers.row_counts import RowCounts

TrainOn = Literal["all", "assistant"]
Rendered = tuple[list[int], list[int]]
# Ids and mask as cut; tokens and trained tokens of the whole conversation, None for a piece of text.
Counted = tuple[list[int], list[int], tuple[int, int] | None]
CHUNK = 64  # conversations per task of a rendering process
COLUMNS = 64  # widths of shortened batches are multiples of it, so that compiled layers see few of them


def render(mixture: TaskMixture, position: int, form: ChatFormat, max_length: int, train_on: TrainOn) -> Counted:
    """Renders one conversation, or a piece of text, cut to `max_length` tokens; later steps never cut.

    Returns:
        The ids, the mask of trained tokens, and how many tokens and trained tokens the whole conversation has; None
        for text.
    """
    example = mixture[position]
    if "text" in example:
        ids = form.text(example["text"])[:max_length]
        return ids, [1] * len(ids), None
    ids, mask = form.conversation(example["messages"])
    mask = mask if train_on == "assistant" else [1] * len(ids)
    return ids[:max_length], mask[:max_length], (len(ids), sum(mask[1:]))


def render_all(
    mixture: TaskMixture, form: ChatFormat, max_length: int, train_on: TrainOn, num_workers: int = 0
) -> Iterator[Counted]:
    """Renders a mixture in its order, a large one on several processes (0: one per CPU core)."""
    num_workers = num_workers or os.cpu_count() or 1
    if num_workers == 1 or len(mixture) < 20 * CHUNK or "fork" not in multiprocessing.get_all_start_methods():
        yield from (render(mixture, at, form, max_length, train_on) for at in range(len(mixture)))
        return
    shared = (mixture, form, max_length, train_on)
    with multiprocessing.get_context("fork").Pool(num_workers, _start_worker, shared) as pool:
        yield from pool.imap(_render_shared, range(len(mixture)), chunksize=CHUNK)
        pool.close()
        pool.join()


_shared: tuple[TaskMixture, ChatFormat, int, TrainOn]  # of a rendering process, which does nothing else


def _start_worker(mixture: TaskMixture, form: ChatFormat, max_length: int, train_on: TrainOn) -> None:
    global _shared
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a handler of the parent would keep it from ending
    _shared = mixture, form, max_length, train_on
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _render_shared(position: int) -> Counted:
    mixture, form, max_length, train_on = _shared
    return render(mixture, position, form, max_length, train_on)


def make_rows(
    tasks: Sequence[tuple[Any, int]],
    tokenizer: Any,
    row_length: int,
    *,
    train_on: TrainOn,
    seed: int = 42,
    epochs: int | None = 1,
    num_rows: int | None = None,
    packing: ChatPacking = "best_fit",
    num_workers: int = 0,
    title: str = "packing",
) -> dict[str, np.ndarray]:
    """Packs the conversations and texts of `tasks` into rows, padded, never cropped.

    Args:
        tasks: (task, repeat) pairs.
        row_length: tokens per row.
        train_on: in conversations, `"assistant"` gives all tokens that are not the assistant's the label -100; `"all"`
            only padding.
        epochs: passes over the tasks, each with its own order; None: as many as `num_rows` needs.
        num_rows: largest number of rows; None: all.
        packing: `"best_fit"`: several conversations per row; `"none"`: one per row.

    Returns:
        `input_ids` and `labels`, int32 [rows, row_length], labels not shifted. Each row has at least one label.

    Raises:
        UserError: no conversation has anything to train on within a row.
    """

    counts, form = RowCounts(row_length, title), ChatFormat(tokenizer)

    def conversations() -> Iterator[Rendered]:
        for epoch in range(epochs) if epochs is not None else count():
            mixture, useful = TaskMixture(tasks, seed=seed + epoch), 0
            rendered = render_all(mixture, form, row_length, train_on, num_workers)
            for ids, mask, whole in progress_bar(rendered, total=len(mixture), desc=title, unit=" conversations"):
                if whole is None:
                    counts.add_text(len(ids))
                else:
                    counts.add(len(ids), sum(mask[1:]), *whole)
                if any(mask[1:]):
                    useful += 1
                    yield ids, mask
            if not useful:  # with further passes this would never end
                raise UserError(
                    f"the tasks hold nothing to train on: no answer begins within the row's {row_length} tokens; "
                    "raise max_seq_len"
                )

    packed = pack_conversations(conversations(), row_length, tokenizer.pad_token_id, packing=packing)
    rows = list(islice(packed, num_rows))
    counts.report()
    return {name: np.stack([row[name] for row in rows]).astype(np.int32) for name in ("input_ids", "labels")}


def files_of(specs: Sequence[str]) -> dict[str, Any]:
    """What the fingerprint of rows has of the files that tasks name: other content makes other rows."""
    return {"files": contents(fingerprints_of(specs))}


def stored_rows(folder: Path, fingerprint: dict[str, Any], make: Any, writes: bool = True) -> Any:
    """Makes the rows once, on the main process, and opens them on all; every process has to call it.

    Machines with disks of their own receive them.

    Args:
        folder: where they are kept, under a name made from `fingerprint`.
        fingerprint: the settings and files that the rows depend on; others make other rows. That of process 0 counts,
            whose files are read.
        make: function without arguments that returns the columns.
        writes: whether this process writes for its disk, as `disks.writes` says.

    Returns:
        A `datasets.Dataset`, memory-mapped.
    """
    import datasets

    fingerprint = disks.gather(fingerprint)[0]
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"rows-{digest}"
    disks.spread(path, writes)  # those of a run before, to a machine that has lost its disk
    if disks.rank() == 0 and not path.exists():
        part = path.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        datasets.disable_progress_bars()
        datasets.Dataset.from_dict(make()).save_to_disk(str(part))
        part.rename(path)
    disks.spread(path, writes)
    return datasets.load_from_disk(str(path)).with_format("numpy")


def collate(rows: Sequence[dict[str, np.ndarray]], shorten: bool = False) -> dict[str, torch.Tensor]:
    """Makes the batch from rows of T + 1 tokens: T inputs and, shifted by one, T targets; int64 [rows, T].

    Padding is at the end of a row, where no trained token sees it. So the attention mask is all ones; TRL counts
    tokens with it. `labels` are the inputs' own labels: Trainer asks whether a batch has labels.

    Args:
        shorten: leaves out the columns behind the last label of all rows, down to a multiple of `COLUMNS`. The loss
            stays the same.
    """
    ids = torch.from_numpy(np.stack([row["input_ids"] for row in rows])).long()
    labels = torch.from_numpy(np.stack([row["labels"] for row in rows])).long()
    if shorten:
        trained = (labels != IGNORED).any(dim=0).nonzero()
        used = int(trained.max()) if len(trained) else 1  # targets up to the last label
        width = -(-used // COLUMNS) * COLUMNS + 1
        ids, labels = ids[:, :width], labels[:, :width]
    return {
        "input_ids": ids[:, :-1],
        "attention_mask": torch.ones_like(ids[:, :-1]),
        "labels": labels[:, :-1],
        "shift_labels": labels[:, 1:],
    }


def pad_with_empty_rows(columns: dict[str, np.ndarray], multiple: int) -> dict[str, np.ndarray]:
    """Adds rows without labels up to a multiple of `multiple`, so that no row is counted twice."""
    missing = -len(columns["input_ids"]) % multiple
    ids = np.concatenate([columns["input_ids"], np.repeat(columns["input_ids"][:1], missing, axis=0)])
    empty = np.full((missing, ids.shape[1]), IGNORED, dtype=columns["labels"].dtype)
    return {"input_ids": ids, "labels": np.concatenate([columns["labels"], empty])}


def delete_rows(folder: str | os.PathLike) -> None:
    """Deletes the rows that `stored_rows` made in a folder."""
    for rows in Path(folder).glob("rows-*"):
        shutil.rmtree(rows, ignore_errors=True)
