"""The model under evaluation: a checkpoint folder or a Hub id, with its tokenizer and its way of being asked."""

from functools import cached_property
from typing import Any

import torch

from nanochat_hf.generation import load_checkpoint
from nanochat_hf.settings import UserError

ASSISTANT_START = "<|assistant_start|>"

Messages = list[dict[str, Any]]


class Subject:
    """A causal language model with its tokenizer.

    Args:
        name: the folder or Hub id, for reports.
        model: in evaluation mode, on its device.
        tokenizer: ours, or that of any other model.
    """

    def __init__(self, name: str, model: torch.nn.Module, tokenizer: Any):
        self.name, self.model, self.tokenizer = name, model.eval(), tokenizer

    @cached_property
    def is_nanochat(self) -> bool:
        """Whether the tokenizer has nanochat's control tokens, so that our renderer and tool loop apply."""
        return ASSISTANT_START in self.tokenizer.get_vocab()

    @cached_property
    def prompt_style(self) -> str:
        """How conversations are put to this model; stands beside every chat score, because scores depend on it."""
        if self.is_nanochat:
            return "nanochat"
        return "chat template" if getattr(self.tokenizer, "chat_template", None) else "plain text"

    @cached_property
    def _corpus_encoder(self) -> Any:
        from nanochat_hf.tokenizer import CorpusEncoder

        return CorpusEncoder(self.tokenizer)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Texts → token ids, the begin-of-document token first. Control tokens typed in a text stay plain text."""
        if not texts:
            return []
        if self.is_nanochat:
            ids, offsets = self._corpus_encoder.encode_batch(texts)
            return [ids[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
        first = self.tokenizer.bos_token_id
        if first is None:  # some tokenizers name only the token that ends a document; it also begins the next one
            first = self.tokenizer.eos_token_id
        rows = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [([] if first is None else [first]) + row for row in rows]

    def prompt(self, messages: Messages) -> list[int]:
        """Token ids of a conversation that ends where the assistant's answer begins."""
        if self.prompt_style == "nanochat":
            from nanochat_hf.tokenizer import render_prompt

            return render_prompt(self.tokenizer, messages)
        if self.prompt_style == "chat template":
            return self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        text = "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)
        return self.encode([f"{text}\n\nAssistant:"])[0]

    def letter_id(self, letter: str) -> int:
        """The one token with which this model would begin an answer that is `letter`."""
        text = f" {letter}" if self.prompt_style == "plain text" else letter
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise UserError(
                f"{self.name}: {text!r} is {len(ids)} tokens, but choice tasks compare single tokens; "
                "leave the choice tasks out for this model"
            )
        return ids[0]


def load_subject(name: str, **options: Any) -> Subject:
    """Loads a checkpoint folder or a Hub model; options as in `load_checkpoint`."""
    return Subject(name, *load_checkpoint(name, **options))
