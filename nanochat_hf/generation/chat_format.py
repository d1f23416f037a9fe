"""How a model's conversations are written: its own chat template and tools where it has them, ours where it has none.

Models of this project, and models that have been given our control tokens, are rendered by our template, which marks
what the assistant says. Another model keeps its template. Which tokens the assistant says then comes from

1. the template's own `{% generation %}` marks,
2. else TRL's marked copy of the template, where TRL knows it (`get_training_chat_template`),
3. else renderings of growing beginnings of the conversation: what an answer adds is the assistant's.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch
from jinja2.exceptions import TemplateError

from nanochat_hf.generation.prompts import encode_as_text, rendered
from nanochat_hf.settings import UserError
from nanochat_hf.tokenizer import CHAT_TEMPLATE, RESPONSE_TEMPLATE, SPECIAL_TOKENS, render_conversation, stop_token_ids
from nanochat_hf.tools.presentation import parts_of
from nanochat_hf.tools.registry import called_tool, schemas

Message = dict[str, Any]
JOIN = "\n\n"  # between a system message and the user's, where a template has no system messages


class ChatFormat:
    """Renders conversations for one tokenizer.

    Args:
        tokenizer: with a chat template.

    Attributes:
        ours: whether the template is that of this project.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.ours = is_ours(tokenizer)

    # -- what the template can do ------------------------------------------------------------------------------------

    @cached_property
    def marked_template(self) -> str | None:
        """A template that marks what the assistant says, the end of its turn included; None where there is none."""
        from trl.chat_template_utils import (
            get_training_chat_template,
            has_generation_markers,
            is_chat_template_stop_token_trained,
        )

        own = self.tokenizer.chat_template
        own = own["default"] if isinstance(own, dict) else own
        if not has_generation_markers(own):
            try:
                own = get_training_chat_template(self.tokenizer) or own
            except ValueError:  # TRL does not know it
                return None
        return own if is_chat_template_stop_token_trained(self.tokenizer, chat_template=own) else None

    @cached_property
    def has_tools(self) -> bool:
        """Whether the template writes tool calls and their results."""
        from trl.chat_template_utils import supports_tool_calling

        return bool(supports_tool_calling(self.tokenizer))

    @cached_property
    def has_system_messages(self) -> bool:
        """Whether the template takes a system message."""
        probe = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
        try:
            self.tokenizer.apply_chat_template(probe, tokenize=False)
        except TemplateError:
            return False
        return True

    # -- rendering ---------------------------------------------------------------------------------------------------

    def conversation(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Returns the token ids of a conversation, and a mask of the same length: 1 where the assistant's token is."""
        if self.ours:
            return render_conversation(self.tokenizer, list(messages))
        messages = self.own_messages(messages)
        tools = schemas() if any(message.get("tool_calls") for message in messages) else None
        if self.marked_template is None:
            return self._conversation_by_beginnings(messages, tools)
        found = rendered(
            self.tokenizer,
            messages,
            chat_template=self.marked_template,
            tools=tools,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        return list(found["input_ids"]), list(found["assistant_masks"])

    def text(self, text: str) -> list[int]:
        """Returns the token ids of plain text, which begins as texts of pretraining do."""
        begin, ids = self.tokenizer.bos_token_id, encode_as_text(self.tokenizer, text)
        return ids if begin is None else [begin, *ids]

    def prompt(self, messages: Sequence[Message], tools: bool = False) -> list[int]:
        """Returns the token ids of a conversation up to where the assistant's answer begins.

        Args:
            tools: whether a template of another model declares our tools.
        """
        if not self.ours:
            messages = self.own_messages(messages)
        return self._ids(messages, schemas() if tools and not self.ours else None, add_generation_prompt=True)

    def _ids(self, messages: Sequence[Message], tools: Any = None, **options: Any) -> list[int]:
        return list(rendered(self.tokenizer, list(messages), tools=tools, return_dict=False, **options))

    def _conversation_by_beginnings(self, messages: list[Message], tools: Any) -> tuple[list[int], list[int]]:
        """Finds the assistant's tokens without marks: between the prompt before an answer and what ends with it."""
        ids = self._ids(messages, tools)
        mask, special = [0] * len(ids), set(self.tokenizer.all_special_ids)
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._ids(messages[:index], tools, add_generation_prompt=True)
            after = self._ids(messages[: index + 1], tools)
            start, end = _common(ids, before), _common(ids, after)
            ends = [place for place in range(start, end) if ids[place] in special]
            end = ends[-1] + 1 if ends else end  # the line break behind the end of a turn is not the assistant's
            mask[start:end] = [1] * (end - start)
        return ids, mask

    # -- messages in the form of other templates ---------------------------------------------------------------------

    def own_messages(self, messages: Sequence[Message]) -> list[Message]:
        """Returns messages as templates of other models take them: contents are text, calls are `tool_calls`."""
        found: list[Message] = []
        for message in messages:
            if message["role"] == "assistant" and not isinstance(message.get("content"), str):
                found += self._with_calls(message) if self.has_tools else [without_calls(message)]
            else:
                found.append(message)
        if found and found[0]["role"] == "system" and not self.has_system_messages:
            first = {"role": "user", "content": found[0]["content"] + JOIN + found[1]["content"]}
            found = [first, *found[2:]]
        return found

    def _with_calls(self, message: Message) -> list[Message]:
        """An assistant's message of parts as several: each call ends a message and is followed by its result.

        A call without a result is left out, because a template expects one.
        """
        found, said, parts = [], "", parts_of(message.get("content"))
        for part, following in zip(parts, [*parts[1:], {"type": "end"}], strict=True):
            if part["type"] == "text":
                said += part["text"]
            elif part["type"] == "python" and following["type"] == "python_output":
                name, arguments = called_tool(part["text"])
                call = {"type": "function", "function": {"name": name, "arguments": arguments}}
                found.append({"role": "assistant", "content": said, "tool_calls": [call]})
                found.append({"role": "tool", "name": name, "content": following["text"]})
                said = ""
        return [*found, {"role": "assistant", "content": said}]

    # -- the tool loop of other templates ----------------------------------------------------------------------------

    def calls(self, ids: list[int], prompt: list[int]) -> tuple[str, list[Message]]:
        """Reads an answer back: (text, tool calls), as the template writes them; only where `reads_calls` is true."""
        assert self.reads_calls
        from trl.chat_template_utils import parse_response

        read = parse_response(self.tokenizer, ids, prefix=prompt, tools=schemas())
        return read.get("content") or "", read.get("tool_calls") or []

    @cached_property
    def reads_calls(self) -> bool:
        """Whether calls can be read back from what the model writes: the template is one that TRL knows."""
        from trl.chat_template_utils import add_response_schema

        if self.ours or not self.has_tools:
            return False
        if getattr(self.tokenizer, "response_template", None) is None:
            try:
                add_response_schema(self.tokenizer)
            except ValueError:
                return False
        return True

    def after_results(self, results: list[Message]) -> list[int]:
        """The token ids that follow an answer with calls: the tools' results, and the beginning of the next answer.

        Args:
            results: messages with the role "tool".
        """
        dummy = {"type": "function", "function": {"name": results[0]["name"], "arguments": {}}}
        asked = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [dummy] * len(results)},
        ]
        before = self._ids(asked)
        while before and before[-1] not in self.tokenizer.all_special_ids:  # what follows the end of the turn
            before.pop()
        return self._ids([*asked, *results], add_generation_prompt=True)[len(before) :]


def is_ours(tokenizer: Any) -> bool:
    """Whether a tokenizer has our control tokens and a template that uses them."""
    return "<|assistant_start|>" in str(tokenizer.chat_template or "") or (
        tokenizer.chat_template is None and "<|assistant_start|>" in tokenizer.get_vocab()
    )


def _common(whole: Sequence[int], part: Sequence[int]) -> int:
    """The length of the beginning that two sequences share."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(whole, part, strict=False)))


def without_calls(message: Message) -> Message:
    """An assistant's message of parts as text. A result that the text does not repeat is put in at its place."""
    parts = parts_of(message.get("content"))
    said = ""
    for part, following in zip(parts, [*parts[1:], {"type": "text", "text": ""}], strict=True):
        repeated = following["type"] == "text" and following["text"].lstrip().startswith(part["text"])
        if part["type"] == "text" or (part["type"] == "python_output" and not repeated):
            said += part["text"]
    return {"role": "assistant", "content": said}


@torch.no_grad()
def install_chat_format(model: Any, tokenizer: Any) -> None:
    """Gives a model without a chat template ours: control tokens, rows for them in the embeddings, and the template.

    The new tokens get the mean of the embeddings, `<|bos|>` those of the token that began texts before.
    """
    began = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = "<|bos|>", "<|assistant_end|>", "<|bos|>"
    tokenizer.chat_template, tokenizer.response_template = CHAT_TEMPLATE, RESPONSE_TEMPLATE
    tokenizer.padding_side = "left"
    table = model.get_input_embeddings().weight
    if len(tokenizer) > len(table):
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    for part in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
        if began is not None:
            part.weight[tokenizer.bos_token_id] = part.weight[began]
    for config in (model.config.get_text_config(), model.generation_config):
        config.bos_token_id, config.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
        config.eos_token_id = tokenizer.eos_token_id
    print(
        f"the model has no chat template: our {len(SPECIAL_TOKENS)} control tokens and template are installed, the "
        f"vocabulary is now {len(model.get_input_embeddings().weight):,}",
        flush=True,
    )


def prepare_for_chat(model: Any, tokenizer: Any, lora: bool = False) -> None:
    """Makes sure that a model can hold conversations; called once, before a chat stage.

    Args:
        lora: whether only LoRA matrices will be trained.

    Raises:
        UserError: the model needs new control tokens, and LoRA would not train their embeddings.
    """
    if tokenizer.chat_template is None and not is_ours(tokenizer):
        if lora:
            raise UserError(
                "the model has no chat template, and LoRA does not train the embeddings of new control tokens; train "
                "it once without --lora_rank, or take a model with a chat template"
            )
        install_chat_format(model, tokenizer)
    if is_ours(tokenizer):
        model.generation_config.eos_token_id = stop_token_ids(tokenizer)
        return
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    ends = model.generation_config.eos_token_id
    ends = list(ends) if isinstance(ends, list | tuple) else [ends]
    model.generation_config.eos_token_id = sorted({*ends, tokenizer.eos_token_id} - {None})
