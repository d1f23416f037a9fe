"""Prompts as token ids, away from the event loop, so that a long text does not hold up other requests."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nanochat_hf.generation.chat_format import is_ours
from nanochat_hf.generation.prompts import prompt_ids
from nanochat_hf.serving.engine import Engine
from nanochat_hf.serving.fields import BadRequest
from nanochat_hf.serving.requests import too_long
from nanochat_hf.settings import UserError


class PromptReader:
    """Renders and encodes prompts in one thread of its own."""

    def __init__(self, engine: Engine):
        self.engine, self.tokenizer = engine, engine.tokenizer
        self.threads = ThreadPoolExecutor(1, "prompts")
        # No token stands for more bytes than the longest. So a text can be too long at sight, before it is encoded.
        self.longest_token = max((len(token.encode()) for token in self.tokenizer.get_vocab()), default=1)

    async def completion(self, prompt: str | list[int], last: int | None = None) -> list[int]:
        """Returns the ids of a completion's prompt: text, or ids as they are. Empty text is the beginning token.

        Args:
            last: how many tokens are read, from the end; None reads all, and refuses a text that is too long.
        """
        if isinstance(prompt, list):
            return prompt
        if last is None:
            self._check(len(prompt))
            return await self._run(self._encode, prompt)
        ids = await self._run(self._encode, prompt[-self.engine.context_length * self.longest_token :])
        return ids[-last:]

    async def chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """Returns the ids of a conversation, up to where the assistant's answer begins.

        Raises:
            EngineError: the engine takes no more requests.
            BadRequest: the template cannot render the conversation.
        """
        if self.tokenizer.chat_template is None:
            raise BadRequest(
                "this model has no chat template: send /v1/completions, or serve a chat model", "messages"
            )
        if not is_ours(self.tokenizer) and any(isinstance(message["content"], list) for message in messages):
            raise BadRequest("this model's chat template has no calls inside a message: send text", "messages")
        self._check(characters(messages))
        return await self._run(self._render, messages)

    def _check(self, length: int) -> None:
        context = self.engine.context_length
        if length > context * self.longest_token:
            raise too_long(f"more than {length // self.longest_token:,}", context)

    async def _run(self, work: Any, *arguments: Any) -> Any:
        self.engine.check_room()  # a request that would be refused afterwards is not encoded
        return await asyncio.get_running_loop().run_in_executor(self.threads, work, *arguments)

    def _encode(self, text: str) -> list[int]:
        ids = self.tokenizer(text)["input_ids"]
        begin = self.tokenizer.bos_token_id
        return ids or ([begin] if begin is not None else [])

    def _render(self, messages: list[dict[str, Any]]) -> list[int]:
        try:
            return prompt_ids(self.tokenizer, messages)
        except UserError as error:
            raise BadRequest(str(error), "messages") from None


def characters(value: Any) -> int:
    """Counts the characters of what is written in messages."""
    if isinstance(value, list):
        return sum(map(characters, value))
    if isinstance(value, dict):
        return sum(characters(each) for name, each in value.items() if name not in ("role", "type"))
    return len(value) if isinstance(value, str) else 0
