"""transformers' request handlers, with requests checked first and chats answered by our own generation."""

import functools
import types
from typing import Any

import torch
from fastapi import HTTPException
from fastapi.responses import JSONResponse
from jinja2.exceptions import TemplateError
from openai.types.completion_usage import CompletionUsage
from transformers.cli.serving import chat_completion, completion
from transformers.cli.serving.utils import Modality

from nanochat_hf.serving.engine import ToolGenerateManager, can_answer
from nanochat_hf.serving.requests import check_messages, check_sampling

DEFAULT_MAX_TOKENS = 1024


def _with_top_k(handler: type) -> type:
    """The fields that a handler lets through, and top_k, which is not in OpenAI's protocol but in everyone else's."""
    fields = handler._valid_params_class.__mutable_keys__ | {"top_k"}
    return type("Parameters", (), {"__mutable_keys__": fields})


class Checked:
    """What both handlers do before transformers' own code sees a request."""

    def _resolve_model(self, body: dict) -> Any:
        """Clients must send some model name; there is one model here, so any will do."""
        return super()._resolve_model({**body, "model": None})

    async def handle_request(self, body: dict, request_id: str) -> Any:
        try:
            body = dict(body)
            check_sampling(body)
            _, model, tokenizer = self._resolve_model(body)
            self._fit(body, len(self.prompt_ids(body, tokenizer)), model.config.max_position_embeddings)
        except (ValueError, TemplateError) as error:
            raise HTTPException(400, str(error)) from None
        except (KeyError, TypeError) as error:
            raise HTTPException(400, f"the request cannot be read: {error}") from None
        return await self.respond(body, request_id)

    async def respond(self, body: dict, request_id: str) -> Any:
        return await super().handle_request(body, request_id)

    @staticmethod
    def _fit(body: dict, prompt: int, context: int) -> None:
        if prompt >= context:
            raise ValueError(f"the prompt has {prompt} tokens, and the model reads {context}: please shorten it")
        names = [name for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None]
        for name in names or ["max_tokens"]:
            body[name] = min(body.get(name) or DEFAULT_MAX_TOKENS, context - prompt)

    def _build_generation_config(self, body: dict, *args: Any, **kwargs: Any) -> Any:
        config = super()._build_generation_config(body, *args, **kwargs)
        if body.get("temperature") is not None:
            config.do_sample = body["temperature"] > 0
        if body.get("top_k") is not None:
            config.top_k = body["top_k"] or None
        return config


class Chat(Checked, chat_completion.ChatCompletionHandler):
    _valid_params_class = _with_top_k(chat_completion.ChatCompletionHandler)
    compiled = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.manager = ToolGenerateManager(compiled=self.compiled)

    async def respond(self, body: dict, request_id: str) -> Any:
        """Our own generation where it can do what is asked, transformers' elsewhere."""
        model_id, model, tokenizer = self._resolve_model(body)
        config = self._build_generation_config(body, model.generation_config)
        if self.generation_state.use_continuous_batching(model, Modality.LLM) or not can_answer(body, config):
            return await super().respond(body, request_id)
        self._validate_request(body)
        inputs = {"input_ids": torch.tensor([self.prompt_ids(body, tokenizer)])}
        if body.get("stream"):
            manager = functools.partial(self.manager.generate_streaming, seed=body.get("seed"))
            stream = types.SimpleNamespace(generate_streaming=manager)
            return self._streaming(request_id, model, tokenizer, model_id, inputs, config, gen_manager=stream)
        rollout = await self.manager.answer(model, tokenizer, inputs, config, seed=body.get("seed"))
        read, said = len(rollout.prompt_ids), len(rollout.token_ids)
        usage = CompletionUsage(prompt_tokens=read, completion_tokens=said, total_tokens=read + said)
        reason = rollout.finish_reason
        return JSONResponse(
            self._build_completion(request_id, rollout.text, model_id, finish_reason=reason, usage=usage)
        )

    def prompt_ids(self, body: dict, tokenizer: Any) -> list[int]:
        check_messages(body)
        messages = self.get_processor_inputs_from_messages(body["messages"], Modality.LLM)
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


class Completion(Checked, completion.CompletionHandler):
    _valid_params_class = _with_top_k(completion.CompletionHandler)

    def prompt_ids(self, body: dict, tokenizer: Any) -> list[int]:
        if not isinstance(body.get("prompt"), str) or not body["prompt"]:
            raise ValueError("prompt must be text of at least one character")
        return tokenizer(body["prompt"])["input_ids"]
