"""transformers' request handlers, with two additions.

Requests are checked before transformers reads them. Chats are answered by this project's own generation, with the
calculator, unless a request asks for something that only transformers' `generate` does.
"""

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fastapi import HTTPException
from fastapi.responses import JSONResponse
from jinja2.exceptions import TemplateError
from openai.types.completion_usage import CompletionUsage
from transformers.cli.serving import chat_completion, completion
from transformers.cli.serving.utils import Modality

from nanochat_hf.serving import requests
from nanochat_hf.serving.engine import ToolGenerateManager, can_answer


@contextmanager
def bad_requests() -> Iterator[None]:
    """Turns the errors of a request that cannot be read into HTTP status 400, with one sentence."""
    try:
        yield
    except (ValueError, TemplateError) as error:
        raise HTTPException(400, str(error)) from None
    except (KeyError, TypeError) as error:
        raise HTTPException(400, f"the request cannot be read: {error}") from None


class CheckedHandler:
    """What both handlers do with a request before transformers' code sees it. `model_manager` is a
    [`OneModelManager`]."""

    model_manager: Any

    async def handle_request(self, body: dict, request_id: str) -> Any:
        """Checks a request and answers it.

        Raises:
            HTTPException: status 400, the request is wrong.
        """
        model, tokenizer = self.model_manager.model, self.model_manager.tokenizer
        # Clients must send the name of a model. There is one model here, so any name will do.
        body = {**body, "model": None}
        with bad_requests():
            requests.check_sampling(body)
            prompt = self.prompt_ids(body, tokenizer)
            body = requests.limit_new_tokens(body, len(prompt), model.config.max_position_embeddings)
        return await self.respond(body, prompt, request_id)

    def prompt_ids(self, body: dict, tokenizer: Any) -> list[int]:
        """Returns the token ids of the request's prompt; raises ValueError if there is none."""
        raise NotImplementedError

    async def respond(self, body: dict, prompt: list[int], request_id: str) -> Any:
        """Answers a checked request through transformers' handler."""
        with bad_requests():
            body = requests.for_transformers(body, self.model_manager.model.generation_config)
        return await super().handle_request(body, request_id)


class ChatHandler(CheckedHandler, chat_completion.ChatCompletionHandler):
    """Answers `/v1/chat/completions`."""

    def __init__(self, *args: Any, compiled: bool = False, **kwargs: Any):
        """As in transformers; `compiled` compiles the decoding steps."""
        super().__init__(*args, **kwargs)
        self.manager = ToolGenerateManager(compiled=compiled)

    async def respond(self, body: dict, prompt: list[int], request_id: str) -> Any:
        """Answers with this project's generation if it can do what is asked, else through transformers' handler."""
        model, tokenizer = self.model_manager.model, self.model_manager.tokenizer
        model_id = self.model_manager.model_id
        with bad_requests():
            config = requests.generation_config(body, model.generation_config)
        if self.generation_state.use_continuous_batching(model, Modality.LLM) or not can_answer(body, config):
            return await super().respond(body, prompt, request_id)
        self._validate_request({name: value for name, value in body.items() if name != "top_k"})
        inputs = {"input_ids": torch.tensor([prompt])}
        if body.get("stream"):
            generate = functools.partial(self.manager.generate_streaming, seed=body.get("seed"))
            manager = types.SimpleNamespace(generate_streaming=generate)
            return self._streaming(request_id, model, tokenizer, model_id, inputs, config, gen_manager=manager)
        rollout = await self.manager.answer(model, tokenizer, inputs, config, seed=body.get("seed"))
        read, written = len(rollout.prompt_ids), len(rollout.token_ids)
        usage = CompletionUsage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
        reason = rollout.finish_reason
        return JSONResponse(
            self._build_completion(request_id, rollout.text, model_id, finish_reason=reason, usage=usage)
        )

    def prompt_ids(self, body: dict, tokenizer: Any) -> list[int]:
        requests.check_messages(body)
        messages = self.get_processor_inputs_from_messages(body["messages"], Modality.LLM)
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


class CompletionHandler(CheckedHandler, completion.CompletionHandler):
    """Answers `/v1/completions`: text that the model continues, without a chat template."""

    def prompt_ids(self, body: dict, tokenizer: Any) -> list[int]:
        if not isinstance(body.get("prompt"), str) or not body["prompt"]:
            raise ValueError("prompt must be text of at least one character")
        return tokenizer(body["prompt"])["input_ids"]
