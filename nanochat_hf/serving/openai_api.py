"""OpenAI's routes: chats, completions, models, and the tokens of a text."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from importlib import metadata
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from nanochat_hf.generation.text_stream import token_text
from nanochat_hf.generation.tool_loop import decode_exactly
from nanochat_hf.serving import requests
from nanochat_hf.serving.engine import Engine, EngineError, Event, Job, Ticket, TokenScore, called_function
from nanochat_hf.serving.fields import BadRequest, Fields
from nanochat_hf.serving.prompts import PromptReader
from nanochat_hf.serving.web import EventStream, error_body, event, read_json, unless_gone

FINGERPRINT = f"nanochat-hf-{metadata.version('nanochat-hf')}"


class Answer:
    """One answer, put together from its events.

    Attributes:
        pieces: [segment, kind, text] in order; kinds are "text", "python" and "python_output".
        scores: of its tokens, in order, with whether each is a control token.
        finish_reason: None until it is finished.
    """

    def __init__(self) -> None:
        self.pieces: list[list[Any]] = []
        self.scores: list[tuple[TokenScore, bool]] = []
        self.finish_reason: str | None = None
        self.stop: str | None = None

    def add(self, news: Event) -> None:
        for segment, kind, text in news.pieces:
            if self.pieces and self.pieces[-1][0] == segment:
                self.pieces[-1][2] += text
            else:
                self.pieces.append([segment, kind, text])
        self.scores.append((news.score, news.special))
        self.finish_reason, self.stop = news.finish_reason, news.stop

    @property
    def text(self) -> str:
        """What the assistant says, without calls and results."""
        return "".join(text for _, kind, text in self.pieces if kind == "text")

    def parts(self) -> list[dict[str, str]]:
        """Text, calls and results in order, in the form that messages may send back."""
        return [{"type": kind, "text": text} for _, kind, text in self.pieces]

    def call(self) -> str | None:
        """The call that ended the turn, because the client answers it."""
        if self.finish_reason != "tool_calls":
            return None
        return self.pieces[-1][2] if self.pieces and self.pieces[-1][1] == "python" else ""

    def mean_logprob(self) -> float:
        """Mean log-probability of its tokens."""
        values = [score.logprob or 0.0 for score, _ in self.scores]
        return sum(values) / max(len(values), 1)


async def collect(ticket: Ticket) -> list[Answer]:
    """Waits for all answers of a job."""
    answers = [Answer() for _ in ticket.job.settings]
    async for news in ticket.events():
        answers[news.row].add(news)
    return answers


class OpenAIRoutes:
    """The handlers of OpenAI's routes. Any model name is taken; answers carry the name of the one model here."""

    def __init__(self, engine: Engine, prompts: PromptReader, model_id: str):
        self.engine, self.prompts, self.model_id = engine, prompts, model_id
        self.created = int(time.time())

    # -- chats

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        fields = Fields(await read_json(request))
        fields.text("model")
        job, messages = requests.chat_job(fields, self.engine)
        stream, with_usage = read_stream(fields)
        fields.done(requests.DESCRIPTIONS)
        job = requests.fit(replace(job, prompt=await self.prompts.chat(messages)), self.engine)
        head = {**self._head("chatcmpl"), "object": "chat.completion"}
        ticket = self.engine.submit(job)
        if stream:
            head["object"] = "chat.completion.chunk"
            return EventStream(request, self._chat_events(ticket, head, with_usage))
        answers = await unless_gone(request, collect(ticket))
        choices = [
            {
                "index": index,
                "message": self._message(answer),
                "finish_reason": answer.finish_reason,
                "logprobs": self._chat_logprobs(answer.scores) if job.logprobs is not None else None,
            }
            for index, answer in enumerate(answers)
        ]
        usage = usage_of(job, sum(len(answer.scores) for answer in answers))
        return JSONResponse({**head, "choices": choices, "usage": usage})

    def _head(self, kind: str) -> dict[str, Any]:
        """What every answer begins with."""
        name = f"{kind}-{uuid.uuid4().hex}"
        return {"id": name, "created": int(time.time()), "model": self.model_id, "system_fingerprint": FINGERPRINT}

    @staticmethod
    def _message(answer: Answer) -> dict[str, Any]:
        """The assistant's message. Where the calculator was used, `parts` has text, calls and results in order."""
        message: dict[str, Any] = {"role": "assistant", "content": answer.text}
        call = answer.call()
        if call is not None:
            message["tool_calls"] = [tool_call(call)]
            message["content"] = answer.text or None
        if any(kind == "python_output" for _, kind, _ in answer.pieces):
            message["parts"] = answer.parts()
        return message

    async def _chat_events(self, ticket: Ticket, head: dict[str, Any], with_usage: bool) -> AsyncIterator[str]:
        job, written = ticket.job, 0
        answers = [Answer() for _ in job.settings]

        def chunk(index: int, delta: dict[str, Any], reason: str | None = None, scores: Any = None) -> str:
            # Role and calls stand in each piece, because text-generation-inference's client asks for them.
            delta = {"role": "assistant", "tool_calls": None, **delta}
            choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": reason}
            choice["logprobs"] = self._chat_logprobs(scores) if job.logprobs is not None and scores else None
            return event({**head, "choices": [choice]})

        try:
            for index in range(len(answers)):
                yield chunk(index, {"content": ""})
            async for news in ticket.events():
                answer, written = answers[news.row], written + 1
                answer.add(news)
                delta: dict[str, Any] = {}
                if text := "".join(text for _, kind, text in news.pieces if kind == "text"):
                    delta["content"] = text
                if any(kind != "text" for _, kind, _ in news.pieces) and not job.client_tools:
                    delta["parts"] = [{"type": kind, "text": text} for _, kind, text in news.pieces]
                scores = [(news.score, news.special)]
                if delta or (job.logprobs is not None and self._chat_logprobs(scores)["content"]):
                    yield chunk(news.row, delta, scores=scores)
                if news.finish_reason:
                    if (call := answer.call()) is not None:
                        yield chunk(news.row, {"tool_calls": [{"index": 0, **tool_call(call)}]})
                    yield chunk(news.row, {}, news.finish_reason)
            if with_usage:
                yield event({**head, "choices": [], "usage": usage_of(job, written)})
        except EngineError as error:
            yield event(error_body(str(error), 503))
        yield event("[DONE]")

    def _chat_logprobs(self, scores: list[tuple[TokenScore, bool]]) -> dict[str, Any]:
        stop = self.engine.control.stop
        return {"content": [self._scored(score) for score, _ in scores if score.token not in stop], "refusal": None}

    def _scored(self, score: TokenScore) -> dict[str, Any]:
        entry = self._token(score.token, score.logprob)
        return {**entry, "top_logprobs": [self._token(token, logprob) for token, logprob in score.top]}

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        text, data = token_text(self.engine.tokenizer, token)
        return {"token": text, "logprob": logprob, "bytes": list(data)}

    # -- completions

    async def completions(self, request: Request) -> Response:
        """`POST /v1/completions`: text that the model continues, without a chat template."""
        fields = Fields(await read_json(request))
        fields.text("model")
        base, given, form = requests.completion_jobs(fields, self.engine)
        stream, with_usage = read_stream(fields)
        fields.done(requests.DESCRIPTIONS)
        if stream and form["best_of"] > form["number"]:
            raise BadRequest("best_of cannot be streamed: the best answer is known at the end", "best_of")
        jobs = []
        for prompt in given:
            job = replace(base, prompt=await self.prompts.completion(prompt))
            jobs.append(requests.fit(job, self.engine))
        head = {**self._head("cmpl"), "object": "text_completion"}
        tickets = self.engine.submit_all(jobs)
        if stream:
            return EventStream(request, self._completion_events(tickets, form, head, with_usage))
        try:
            groups = await unless_gone(request, asyncio.gather(*map(collect, tickets)))
        finally:
            for ticket in tickets:
                ticket.cancel()
        choices: list[dict[str, Any]] = []
        for ticket, answers in zip(tickets, groups, strict=True):
            if form["best_of"] > form["number"]:
                answers = sorted(answers, key=Answer.mean_logprob, reverse=True)[: form["number"]]
            choices += [self._completion_choice(ticket, answer, form) for answer in answers]
        for index, choice in enumerate(choices):
            choice["index"] = index
        read = sum(len(job.prompt) for job in jobs)
        written = sum(len(answer.scores) for answers in groups for answer in answers)
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        return JSONResponse({**head, "choices": choices, "usage": usage})

    def _completion_choice(self, ticket: Ticket, answer: Answer, form: dict[str, Any]) -> dict[str, Any]:
        text, scores = answer.text, [score for score, _ in answer.scores]
        if form["echo"]:
            text = decode_exactly(self.engine.tokenizer, ticket.job.prompt) + text
            scores = ticket.prompt_scores + scores
        logprobs = None
        if form["count"] is not None:
            logprobs = self._completion_logprobs(scores, form["count"])
        reason = answer.finish_reason or "length"  # a prompt that is only scored ends at its length
        return {"index": 0, "text": text, "finish_reason": reason, "logprobs": logprobs}

    def _completion_logprobs(self, scores: list[TokenScore], count: int, offset: int = 0) -> dict[str, Any]:
        tokenizer, texts, offsets = self.engine.tokenizer, [], []
        for score in scores:
            texts.append(token_text(tokenizer, score.token)[0])
            offsets.append(offset)
            offset += len(texts[-1])
        top: list[dict[str, float] | None] | None = None
        if count:
            # The written token is always among them, as in OpenAI's API.
            top = [
                None
                if score.logprob is None
                else {token_text(tokenizer, token)[0]: value for token, value in reversed(score.top)}
                | {text: score.logprob}
                for text, score in zip(texts, scores, strict=True)
            ]
        values = [score.logprob for score in scores]
        return {"tokens": texts, "token_logprobs": values, "top_logprobs": top, "text_offset": offsets}

    async def _completion_events(
        self, tickets: list[Ticket], form: dict[str, Any], head: dict[str, Any], with_usage: bool
    ) -> AsyncIterator[str]:
        queue: asyncio.Queue[tuple[int, Event | None | EngineError]] = asyncio.Queue()

        async def forward(number: int, ticket: Ticket) -> None:
            try:
                async for news in ticket.events():
                    queue.put_nowait((number, news))
                queue.put_nowait((number, None))
            except EngineError as error:
                queue.put_nowait((number, error))

        def chunk(index: int, text: str, reason: str | None, scores: list[TokenScore], offset: int) -> str:
            wanted = form["count"] is not None and scores
            logprobs = self._completion_logprobs(scores, form["count"], offset) if wanted else None
            choice = {"index": index, "text": text, "finish_reason": reason, "logprobs": logprobs}
            return event({**head, "choices": [choice]})

        rows, running, written = len(tickets[0].job.settings), len(tickets), 0
        offsets = [0] * (rows * len(tickets))
        # Without an answer, the text of the prompt is all that is sent: empty text where it is not asked for.
        begun = [bool(ticket.job.max_tokens) and not form["echo"] for ticket in tickets]
        tasks = [asyncio.ensure_future(forward(*pair)) for pair in enumerate(tickets)]
        try:
            while running:
                number, news = await queue.get()
                ticket = tickets[number]
                if isinstance(news, EngineError):
                    yield event(error_body(str(news), 503))
                    break
                if not begun[number]:
                    begun[number] = True
                    prompt = decode_exactly(self.engine.tokenizer, ticket.job.prompt) if form["echo"] else ""
                    for row in range(rows):
                        reason = "length" if news is None else None
                        yield chunk(number * rows + row, prompt, reason, ticket.prompt_scores, 0)
                        offsets[number * rows + row] = len(prompt)
                if news is None:
                    running -= 1
                    continue
                index, written = number * rows + news.row, written + 1
                text = "".join(text for _, _, text in news.pieces)
                if text or news.finish_reason or form["count"] is not None:
                    yield chunk(index, text, news.finish_reason, [news.score], offsets[index])
                offsets[index] += len(text)
            if with_usage:
                read = sum(len(ticket.job.prompt) for ticket in tickets)
                usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
                yield event({**head, "choices": [], "usage": usage})
            yield event("[DONE]")
        finally:
            for task in tasks:
                task.cancel()
            for ticket in tickets:
                ticket.cancel()

    # -- the rest

    async def models(self, _request: Request) -> Response:
        """`GET /v1/models`."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/NAME`."""
        name = request.path_params["name"]
        if name != self.model_id:
            raise BadRequest(
                f"there is no model {name!r} here, only {self.model_id!r}", "model", 404, "model_not_found"
            )
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        context = self.engine.context_length
        entry = {"id": self.model_id, "object": "model", "created": self.created, "owned_by": "nanochat-hf"}
        return {**entry, "max_model_len": context}

    async def tokenize(self, request: Request) -> Response:
        """`POST /tokenize`: ids of a text or of messages (vLLM's form), or with places (text-generation-inference)."""
        fields = Fields(await read_json(request))
        fields.text("model")
        tokenizer = self.engine.tokenizer
        inputs, prompt, messages = fields.text("inputs"), fields.text("prompt"), fields.take("messages")
        special = fields.flag("add_special_tokens", True)
        fields.done()
        if sum(each is not None for each in (inputs, prompt, messages)) != 1:
            raise BadRequest("send one of inputs (text), prompt (text) and messages")
        if inputs is not None:
            encoded = await asyncio.to_thread(
                tokenizer, inputs, return_offsets_mapping=True, add_special_tokens=special
            )
            rows = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            return JSONResponse([{"id": i, "text": inputs[a:b], "start": a, "stop": b} for i, (a, b) in rows])
        if messages is not None:
            ids = await self.prompts.chat(requests.read_messages(messages))
        else:
            ids = (await asyncio.to_thread(tokenizer, prompt, add_special_tokens=special))["input_ids"]
        return JSONResponse({"count": len(ids), "max_model_len": self.engine.context_length, "tokens": ids})

    async def detokenize(self, request: Request) -> Response:
        """`POST /detokenize`: the text of token ids."""
        fields = Fields(await read_json(request))
        fields.text("model")
        tokens = fields.take("tokens")
        fields.done()
        requests.check_ids(tokens, "tokens", self.engine)
        return JSONResponse({"prompt": decode_exactly(self.engine.tokenizer, tokens)})


def read_stream(fields: Fields) -> tuple[bool, bool]:
    """Returns whether to stream, and whether the last event tells the usage."""
    stream, options = fields.flag("stream"), Fields(fields.take("stream_options", {}), "stream_options.")
    if options.given and not stream:
        raise BadRequest("stream_options needs stream to be true", "stream_options")
    usage = options.flag("include_usage")
    options.refuse("events are not padded", [False], "include_obfuscation")
    options.done()
    return stream, usage


def usage_of(job: Job, written: int) -> dict[str, int]:
    """The tokens that were read and written."""
    read = len(job.prompt)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def tool_call(call: str) -> dict[str, Any]:
    """A call of one of the client's functions, in OpenAI's form."""
    name, arguments = called_function(call)
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
