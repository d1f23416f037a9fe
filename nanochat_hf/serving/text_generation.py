"""The routes of text-generation-inference, for huggingface_hub's `InferenceClient(url).text_generation(...)`.

transformers' server does not have them. Each request becomes a request to the completion handler.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse

DEFAULT_MAX_TOKENS = 100  # of an answer; the default of text-generation-inference


def add_routes(app: FastAPI, completions: Any) -> None:
    """Adds `/`, `/generate` and `/generate_stream` to the application.

    Args:
        completions: the [`CompletionHandler`] that answers them.
    """

    async def generate(request: Request, body: dict[str, Any], stream: bool) -> Any:
        given = body.get("parameters") or {}
        if not isinstance(body.get("inputs"), str) or not isinstance(given, dict):
            raise HTTPException(400, "the request must be {inputs: text, parameters: {...}}")
        names = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}
        names |= {"seed": "seed", "stop": "stop"}
        asked = {theirs: given[ours] for ours, theirs in names.items() if given.get(ours) is not None}
        if given.get("do_sample"):
            asked.setdefault("temperature", 1.0)
        asked = {"prompt": body["inputs"], "max_tokens": DEFAULT_MAX_TOKENS, "stream": stream, **asked}
        response = await completions.handle_request(asked, request.state.request_id)
        prefix = body["inputs"] if given.get("return_full_text") else ""
        if stream:
            return StreamingResponse(_events(response.body_iterator, prefix), media_type="text/event-stream")
        answer = json.loads(response.body)
        (choice,), used = answer["choices"], answer["usage"]
        output: dict[str, Any] = {"generated_text": prefix + choice["text"]}
        if given.get("details"):
            output["details"] = {**_details(choice, used), "prefill": [], "tokens": []}
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


async def _events(events: AsyncIterator[str], prefix: str) -> AsyncIterator[str]:
    """Turns completion chunks into text-generation-inference's events.

    An event stands for a token there. Here it is a piece of text, so its token id and log-probability are 0.
    """
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
                "details": _details(choice, chunk["usage"]) if last else None,
            }
            index += 1
            yield f"data: {json.dumps(event)}\n\n"


def _details(choice: dict[str, Any], usage: dict[str, int]) -> dict[str, Any]:
    reason = {"stop": "eos_token"}.get(choice["finish_reason"], choice["finish_reason"])
    return {
        "finish_reason": reason,
        "generated_tokens": usage["completion_tokens"],
        "input_length": usage["prompt_tokens"],
    }
