"""OpenAI's `/v1/responses`, without memory: each request brings its whole conversation."""

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from nanochat_hf.serving import requests
from nanochat_hf.serving.engine import Engine, EngineError, Job, Ticket
from nanochat_hf.serving.fields import BadRequest, Fields, shown
from nanochat_hf.serving.openai_api import Answer, collect, tool_call
from nanochat_hf.serving.prompts import PromptReader
from nanochat_hf.serving.web import EventStream, event, read_json, unless_gone

NO_MEMORY = "the server stores nothing; send the whole conversation as input"


class ResponsesRoute:
    """The handler of `POST /v1/responses`."""

    def __init__(self, engine: Engine, prompts: PromptReader, model_id: str):
        self.engine, self.prompts, self.model_id = engine, prompts, model_id

    async def respond(self, request: Request) -> Response:
        """Answers whole, or as a stream of events."""
        fields = Fields(await read_json(request))
        fields.text("model")
        messages = read_input(fields)
        job = self._job(fields)
        asked = {"tools": fields.take("tools", []), "tool_choice": fields.take("tool_choice", "auto")}
        asked["parallel_tool_calls"] = fields.flag("parallel_tool_calls", True)
        stream = fields.flag("stream")
        Fields(fields.take("stream_options", {}), "stream_options.").done(["include_obfuscation"])
        fields.done(requests.DESCRIPTIONS)
        job = requests.fit(replace(job, prompt=await self.prompts.chat(messages)), self.engine)
        ticket = self.engine.submit(job)
        if stream:
            return EventStream(request, self._events(ticket, asked))
        (answer,) = await unless_gone(request, collect(ticket))
        return JSONResponse(self._response(new_id("resp"), job, asked, answer, new_id("msg")))

    def _job(self, fields: Fields) -> Job:
        fields.refuse(NO_MEMORY, (), "previous_response_id", "conversation", "prompt")
        fields.refuse(NO_MEMORY, [False], "store", "background")
        text = Fields(fields.take("text", {}), "text.")
        text.refuse(requests.NO_GRAMMAR, [{"type": "text"}], "format")
        text.refuse("the model has one style of answers", ["medium"], "verbosity")
        text.done()
        fields.refuse("there is nothing more to include", [[]], "include")
        fields.refuse("the model has no separate reasoning", [{"effort": "none"}, {}], "reasoning")
        fields.refuse("a prompt that is too long is refused", ["disabled"], "truncation")
        fields.refuse("there is one tier", ["auto", "default"], "service_tier")
        fields.refuse("probabilities are in /v1/chat/completions", [0], "top_logprobs")
        fields.integer("max_tool_calls", None, 1)  # a turn ends at its first call
        job = Job(
            prompt=[],
            max_tokens=fields.integer("max_output_tokens", requests.CHAT_TOKENS, 1),
            settings=[requests.read_sampling(fields, self.engine)],
            stop=fields.texts("stop", requests.MOST_STOPS),
            chat=True,
        )
        return requests.read_tools(fields, job, self.engine)

    def _response(
        self, name: str, job: Job, asked: dict[str, Any], answer: Answer | None, message: str
    ) -> dict[str, Any]:
        """The response object; `asked` are fields of the request that it repeats."""
        finished = answer is not None and answer.finish_reason is not None
        complete = finished and answer.finish_reason != "length"
        response: dict[str, Any] = {
            "id": name,
            "object": "response",
            "created_at": int(time.time()),
            "status": "completed" if complete else "incomplete" if finished else "in_progress",
            "model": self.model_id,
            "output": [] if answer is None else output_of(answer, message),
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if finished and not complete else None,
            **asked,
            "store": False,
            "usage": None,
        }
        if finished:
            read, written = len(job.prompt), len(answer.scores)
            response["usage"] = {
                "input_tokens": read,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": written,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": read + written,
            }
        return response

    async def _events(self, ticket: Ticket, asked: dict[str, Any]) -> AsyncIterator[str]:
        number = -1

        def say(kind: str, **data: Any) -> str:
            nonlocal number
            number += 1
            return event({"type": kind, "sequence_number": number, **data}, kind)

        name, message, answer = new_id("resp"), new_id("msg"), Answer()
        place = {"item_id": message, "output_index": 0, "content_index": 0}
        started = self._response(name, ticket.job, asked, None, message)
        yield say("response.created", response=started)
        yield say("response.in_progress", response=started)
        begun = False
        try:
            async for news in ticket.events():
                answer.add(news)
                text = "".join(text for _, kind, text in news.pieces if kind == "text")
                if text and not begun:
                    begun = True
                    item = {
                        "id": message,
                        "type": "message",
                        "role": "assistant",
                        "status": "in_progress",
                        "content": [],
                    }
                    yield say("response.output_item.added", output_index=0, item=item)
                    yield say("response.content_part.added", **place, part=text_part(""))
                if text:
                    yield say("response.output_text.delta", **place, delta=text, logprobs=[])
        except EngineError as error:
            yield say("error", code="server_error", message=str(error), param=None)
            return
        output = output_of(answer, message)
        for index, item in enumerate(output):
            if item["type"] == "message" and begun:
                yield say("response.output_text.done", **place, text=answer.text, logprobs=[])
                yield say("response.content_part.done", **place, part=text_part(answer.text))
            else:
                yield say("response.output_item.added", output_index=index, item=item)
            yield say("response.output_item.done", output_index=index, item=item)
        final = self._response(name, ticket.job, asked, answer, message)
        yield say(f"response.{final['status']}", response={**final, "output": output})


def new_id(kind: str) -> str:
    """A name that no other object has."""
    return f"{kind}_{uuid.uuid4().hex}"


def text_part(text: str) -> dict[str, Any]:
    """A part of a message's content."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def output_of(answer: Answer, message: str) -> list[dict[str, Any]]:
    """The items of an answer: what the assistant says, then the call that ended the turn."""
    items: list[dict[str, Any]] = []
    call = answer.call()
    if answer.text or call is None:
        status = "incomplete" if answer.finish_reason in ("length", None) else "completed"
        item = {"id": message, "type": "message", "role": "assistant", "status": status}
        items.append({**item, "content": [text_part(answer.text)]})
    if call is not None:
        made = tool_call(call)
        item = {"id": new_id("fc"), "type": "function_call", "call_id": made["id"], "status": "completed"}
        items.append({**item, **made["function"]})
    return items


def read_input(fields: Fields) -> list[dict[str, Any]]:
    """Returns `instructions` and `input` as messages of the chat template."""
    given, instructions = fields.take("input"), fields.text("instructions")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise BadRequest("input must be text, or a list of at least one message", "input")
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(given):
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind == "message":
            kept = {name: value for name, value in item.items() if name not in ("type", "id", "status")}
            messages.append(kept)
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            messages.append({"role": "assistant", "content": "", "tool_calls": [{"function": function}]})
        elif kind == "function_call_output":
            messages.append({"role": "tool", "content": item.get("output")})
        else:
            raise BadRequest(
                f"input[{index}] must be a message, a function_call or its output, not {shown(item)}", "input"
            )
    system = [{"role": "system", "content": instructions}] if instructions else []
    return [*system, *requests.read_messages(messages, "input")]
