"""The model under evaluation: a checkpoint folder or a Hub id, with its tokenizer and its prompt format."""

from functools import cached_property
from typing import Any

import torch

from nanochat_hf.evals.scoring import Row, read_groups
from nanochat_hf.generation import load_checkpoint, pick_device
from nanochat_hf.generation.chat_format import ChatFormat, without_calls
from nanochat_hf.settings import UserError

ASSISTANT_START = "<|assistant_start|>"

Messages = list[dict[str, Any]]


class EvaluatedModel:
    """A causal language model with its tokenizer, as the evaluations see it.

    Args:
        name: the checkpoint folder or Hub id, for reports.
        model: a causal language model of transformers on its device; it is put into evaluation mode.
        tokenizer: ours, or that of any other model.
    """

    def __init__(self, name: str, model: torch.nn.Module, tokenizer: Any):
        self.name, self.model, self.tokenizer = name, model.eval(), tokenizer
        self.own_tools: ChatFormat | None = None  # where tools run in the form of another model's template

    @property
    def dtype(self) -> str:
        """The dtype of the model's weights, such as "bfloat16"."""
        return str(self.model.dtype).removeprefix("torch.")

    @cached_property
    def is_nanochat(self) -> bool:
        """Whether the tokenizer has nanochat's control tokens, so that our renderer and tool loop apply."""
        return ASSISTANT_START in self.tokenizer.get_vocab()

    @cached_property
    def prompt_style(self) -> str:
        """How conversations become prompts: "nanochat", "chat template" or "plain text".

        Chat scores depend on it, so every chat result names it.
        """
        if self.is_nanochat:
            return "nanochat"
        return "chat template" if getattr(self.tokenizer, "chat_template", None) else "plain text"

    @cached_property
    def _corpus_encoder(self) -> Any:
        from nanochat_hf.tokenizer import CorpusEncoder

        return CorpusEncoder(self.tokenizer)

    @cached_property
    def _chat_format(self) -> ChatFormat:
        return ChatFormat(self.tokenizer)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Texts → token ids, the begin-of-document token first. Control tokens spelled in a text stay plain text."""
        if not texts:
            return []
        if self.is_nanochat:
            ids, offsets = self._corpus_encoder.encode_batch(texts)
            return [ids[start:end].tolist() for start, end in zip(offsets[:-1], offsets[1:], strict=True)]
        first = self.tokenizer.bos_token_id
        if first is None:  # some tokenizers name only the token that ends a document; it also begins the next one
            first = self.tokenizer.eos_token_id
        rows = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [([] if first is None else [first]) + row for row in rows]

    def prompt_ids(self, messages: Messages) -> list[int]:
        """Token ids of a conversation, up to the point where the assistant's answer begins."""
        if self.own_tools is not None:
            return self.own_tools.prompt(messages, tools=True)
        if self.prompt_style == "nanochat":
            from nanochat_hf.tokenizer import render_prompt

            return render_prompt(self.tokenizer, messages)
        if self.prompt_style == "chat template":
            return self._chat_format.prompt(messages)
        said = [(message["role"].capitalize(), without_calls(message)["content"]) for message in messages]
        text = "\n\n".join(f"{role}: {content}" for role, content in said)
        return self.encode([f"{text}\n\nAssistant:"])[0]

    def letter_id(self, letter: str) -> int:
        """Token id with which this model would begin an answer that is `letter`.

        Raises:
            UserError: the letter is more than one token, so exams cannot be scored by their letters.
        """
        text = f" {letter}" if self.prompt_style == "plain text" else letter
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise UserError(
                f"{self.name}: {text!r} is {len(ids)} tokens, but exams compare single tokens; "
                "leave the exams out for this model"
            )
        return ids[0]


def evaluation_dtype(dtype: str | None, device: torch.device) -> str | None:
    """The dtype to load a model in: bfloat16 on a GPU of NVIDIA or AMD, unless another one is named.

    It takes half the time and memory of fp32 or less. Scores change by ties only (`tests/evals/test_dtypes.py`).
    """
    if dtype in (None, "auto") and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    return dtype


def load_evaluated_model(
    name: str, *, device: str | None = None, dtype: str | None = None, **options: Any
) -> EvaluatedModel:
    """Loads a checkpoint folder or a Hub model.

    Args:
        name: the folder or Hub id.
        device: as in `nanochat_hf.generation.load_checkpoint`.
        dtype: such as "float32"; None or "auto" chooses with [`evaluation_dtype`].
        options: revision and trust_remote_code, as in `nanochat_hf.generation.load_checkpoint`.

    Raises:
        UserError: nothing loadable is there, the model computes NaN, or the device or dtype does not exist.
    """
    try:
        dtype = evaluation_dtype(dtype, pick_device(device))
    except RuntimeError:
        pass  # there is no such device: `load_checkpoint` says so
    evaluated = EvaluatedModel(name, *load_checkpoint(name, device=device, dtype=dtype, **options))
    ids = evaluated.encode(["1 + 1"])[0] or [0]
    next(read_groups(evaluated.model, [[Row(ids, len(ids) - 1)]]))  # NaN would make answers that count as wrong
    return evaluated
