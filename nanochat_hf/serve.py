"""An OpenAI-compatible server: transformers' own, taught to find this model's class and to refuse bad requests.

    nanochat-hf serve runs/quickstart/rl --port 8000
    nanochat-hf serve runs/quickstart/rl --continuous-batching    many requests in one batch, for busy servers
    nanochat-hf chat --url http://localhost:8000

Routes: /v1/chat/completions and /v1/completions (streaming or not), /v1/responses, /v1/models, /health; and
text-generation-inference's POST / , /generate and /generate_stream, for huggingface_hub's `text_generation`. The
calculator is not in the loop here: it answers in `nanochat-hf chat CHECKPOINT` and in the Space.
"""

import argparse
import json
import math
from collections.abc import AsyncIterator
from typing import Any

from nanochat_hf.settings import UserError

ROLES = ("system", "user", "assistant", "tool")
DEFAULT_MAX_TOKENS = 1024
CPU_CACHE_CONTEXTS = 32  # full contexts that the paged cache holds on a CPU
TGI_MAX_TOKENS = 100  # what text-generation-inference takes where a request says nothing


def main(argv: list[str]) -> None:
    """The `serve` command."""
    options = _parse(argv)
    if not 0 <= options.port < 65536:
        raise UserError(f"--port must be between 0 and 65535, not {options.port}")
    from nanochat_hf.generation.chat import check_checkpoint

    check_checkpoint(options.checkpoint)  # else it would only be noticed as a failed download
    try:
        from transformers.cli import serve
        from transformers.cli.serving import model_manager
    except ImportError as error:
        raise UserError(f"serving needs more packages ({error}): pip install 'nanochat-hf[serve]'") from None

    from nanochat_hf import NanochatHFForCausalLM

    # The server looks the architecture up as an attribute of the transformers module, the one that it holds itself.
    model_manager.transformers.NanochatHFForCausalLM = NanochatHFForCausalLM
    _install_handlers(options.checkpoint)
    serve.Serve(
        force_model=options.checkpoint,
        continuous_batching=options.continuous_batching,
        **(_cache_on_cpu(options) if options.continuous_batching else {}),
        device=options.device,
        dtype=options.dtype,
        host=options.host,
        port=options.port,
    )


def _cache_on_cpu(options: argparse.Namespace) -> dict[str, int]:
    """Size of the paged cache. Left to itself it takes nine tenths of the memory: right for a GPU's, not for this."""
    import torch
    from transformers import AutoConfig, ContinuousBatchingConfig

    on_cpu = options.device == "cpu" or (options.device == "auto" and not torch.accelerator.is_available())
    if not on_cpu:
        return {}
    context = AutoConfig.from_pretrained(options.checkpoint).max_position_embeddings
    pages = math.ceil(context / ContinuousBatchingConfig().page_size)
    return {"cb_num_blocks": CPU_CACHE_CONTEXTS * pages, "cb_max_batch_tokens": context}


def _install_handlers(checkpoint: str) -> None:
    """Puts our handlers, which check requests first, where transformers' server takes its own from."""
    from fastapi import HTTPException
    from jinja2.exceptions import TemplateError
    from transformers.cli.serving import chat_completion, completion, server
    from transformers.cli.serving.utils import Modality

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

    build_server = server.build_server

    def build_with_more_routes(*args: Any, **kwargs: Any) -> Any:
        app = build_server(*args, **kwargs)
        _add_text_generation(app, kwargs["completion_handler"])
        # transformers lists what is in the Hub's cache; this server has one model.
        app.router.routes = [route for route in app.router.routes if getattr(route, "path", "") != "/v1/models"]

        @app.get("/v1/models")
        def list_models() -> dict[str, Any]:
            return {"object": "list", "data": [{"id": checkpoint, "object": "model", "owned_by": "", "created": 0}]}

        return app

    chat_completion.ChatCompletionHandler, completion.CompletionHandler = Chat, Completion
    server.build_server = build_with_more_routes


def _with_top_k(handler: type) -> type:
    """The fields that a handler lets through, and top_k, which is not in OpenAI's protocol but in everyone else's."""
    fields = handler._valid_params_class.__mutable_keys__ | {"top_k"}
    return type("Parameters", (), {"__mutable_keys__": fields})


def check_messages(body: dict[str, Any]) -> None:
    """Raises ValueError, in one sentence, for a chat request whose messages cannot be rendered."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list of at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ValueError(f"messages[{index}] must be an object whose role is one of {', '.join(ROLES)}")
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            continue
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for part in parts:
            if not isinstance(part, dict) or not isinstance(part.get("text"), str) or "type" not in part:
                raise ValueError(f"messages[{index}].content must be text, or a list of parts of type text")


def check_sampling(body: dict[str, Any]) -> None:
    """Raises ValueError for a setting that no sampler can follow."""
    ranges = {
        "temperature": (0, 10, "between 0 (always the likeliest token) and 10"),
        "top_p": (1e-9, 1, "above 0 and at most 1"),
    }
    for name, (low, high, words) in ranges.items():
        value = body.get(name)
        if value is not None and (not _is_number(value, float) or not low <= value <= high):
            raise ValueError(f"{name} must be a number {words}, not {json.dumps(value)}")
    for name, least in {"max_tokens": 1, "max_completion_tokens": 1, "top_k": 0, "seed": 0}.items():
        value = body.get(name)
        if value is not None and (not _is_number(value, int) or value < least):
            raise ValueError(f"{name} must be a whole number of at least {least}, not {json.dumps(value)}")


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)


def _add_text_generation(app: Any, completions: Any) -> None:
    """The routes of text-generation-inference, answered by the completion handler."""
    from fastapi import HTTPException, Request
    from fastapi.responses import JSONResponse, StreamingResponse

    async def generate(request: Request, body: dict[str, Any], stream: bool) -> Any:
        given = body.get("parameters") or {}
        if not isinstance(body.get("inputs"), str) or not isinstance(given, dict):
            raise HTTPException(400, "the request must be {inputs: text, parameters: {...}}")
        names = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}
        names |= {"seed": "seed", "stop": "stop"}
        asked = {theirs: given[ours] for ours, theirs in names.items() if given.get(ours) is not None}
        if given.get("do_sample"):
            asked.setdefault("temperature", 1.0)
        asked = {"prompt": body["inputs"], "max_tokens": TGI_MAX_TOKENS, "stream": stream, **asked}
        response = await completions.handle_request(asked, request.state.request_id)
        prefix = body["inputs"] if given.get("return_full_text") else ""
        if stream:
            return StreamingResponse(_tgi_events(response.body_iterator, prefix), media_type="text/event-stream")
        answer = json.loads(response.body)
        (choice,), used = answer["choices"], answer["usage"]
        output: dict[str, Any] = {"generated_text": prefix + choice["text"]}
        if given.get("details"):
            output["details"] = {**_tgi_details(choice, used), "prefill": [], "tokens": []}
        return output

    @app.post("/")
    async def root(request: Request, body: dict) -> Any:
        output = await generate(request, body, bool(body.get("stream")))
        return output if isinstance(output, StreamingResponse) else JSONResponse([output])

    @app.post("/generate")
    async def generate_whole(request: Request, body: dict) -> Any:
        return JSONResponse(await generate(request, body, False))

    @app.post("/generate_stream")
    async def generate_stream(request: Request, body: dict) -> Any:
        return await generate(request, body, True)


async def _tgi_events(events: AsyncIterator[str], prefix: str) -> AsyncIterator[str]:
    """Completion chunks as text-generation-inference's events. A chunk is a piece of text, so its id and its logarithm
    of probability are 0."""
    whole, index = prefix, 0
    async for block in events:
        for line in block.splitlines():
            if not line.startswith("data: "):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                yield f"data: {json.dumps({'error': chunk['error'], 'error_type': 'generation'})}\n\n"
                return
            choice = chunk["choices"][0]
            last = choice.get("finish_reason") is not None
            whole += choice["text"]
            event = {
                "index": index,
                "token": {"id": 0, "text": choice["text"], "logprob": 0.0, "special": last},
                "generated_text": whole if last else None,
                "details": _tgi_details(choice, chunk["usage"]) if last else None,
            }
            index += 1
            yield f"data: {json.dumps(event)}\n\n"


def _tgi_details(choice: dict[str, Any], usage: dict[str, int]) -> dict[str, Any]:
    reason = {"stop": "eos_token"}.get(choice["finish_reason"], choice["finish_reason"])
    return {
        "finish_reason": reason,
        "generated_tokens": usage["completion_tokens"],
        "input_length": usage["prompt_tokens"],
    }


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="nanochat-hf serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="checkpoint folder or Hub id")
    parser.add_argument("--host", default="localhost", help="address to listen on (localhost)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (8000)")
    parser.add_argument("--device", default="auto", help="such as cpu or cuda:0")
    parser.add_argument("--dtype", default="auto", help="such as bfloat16; default: the checkpoint's own")
    parser.add_argument(
        "--continuous-batching",
        action="store_true",
        help="answer all requests in one batch over a paged cache; the first request's temperature, top-p and top-k "
        "then hold for all (a limit of transformers' server)",
    )
    return parser.parse_args(argv)
