"""The routes of text-generation-inference: `/`, `/generate`, `/generate_stream` and `/info`.

They are for its own client, and for huggingface_hub's `InferenceClient(url).text_generation(...)`.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from nanochat_hf.generation.text_stream import token_text
from nanochat_hf.serving import requests
from nanochat_hf.serving.engine import Engine, EngineError, Job, Ticket, TokenScore
from nanochat_hf.serving.fields import BadRequest, Fields
from nanochat_hf.serving.openai_api import Answer, collect
from nanochat_hf.serving.prompts import PromptReader
from nanochat_hf.serving.web import EventStream, event, read_json, unless_gone

MAX_TOKENS = 100  # of an answer, where the request does not say: its default
MOST_BEST_OF = 16


@dataclass
class Form:
    """What a request asks of the form of its answer."""

    prefix: str
    details: bool
    prompt_details: bool
    top: int


class TextGenerationRoutes:
    """The handlers of text-generation-inference's routes."""

    def __init__(self, engine: Engine, prompts: PromptReader, model_id: str):
        self.engine, self.prompts, self.model_id = engine, prompts, model_id

    async def root(self, request: Request) -> Response:
        """`POST /`: streamed if the request says so; whole answers are in a list."""
        body = await read_json(request)
        stream = Fields(body).flag("stream")
        return await self._answer(request, {name: body[name] for name in body if name != "stream"}, stream, True)

    async def generate(self, request: Request) -> Response:
        """`POST /generate`."""
        body = await read_json(request)
        Fields(body).refuse("ask /generate_stream", [False], "stream")
        return await self._answer(request, {name: body[name] for name in body if name != "stream"}, False, False)

    async def generate_stream(self, request: Request) -> Response:
        """`POST /generate_stream`."""
        body = await read_json(request)
        return await self._answer(request, {name: body[name] for name in body if name != "stream"}, True, False)

    async def info(self, _request: Request) -> Response:
        """`GET /info`: the model and the limits."""
        context = self.engine.context_length
        return JSONResponse(
            {
                "model_id": self.model_id,
                "model_dtype": str(self.engine.model.dtype),
                "model_device_type": self.engine.model.device.type,
                "model_pipeline_tag": "text-generation",
                "max_concurrent_requests": self.engine.max_batch,
                "max_best_of": MOST_BEST_OF,
                "max_stop_sequences": requests.MOST_STOPS,
                "max_input_tokens": context - 1,
                "max_total_tokens": context,
                "router": "nanochat-hf",
                "version": metadata.version("nanochat-hf"),
            }
        )

    async def _answer(self, request: Request, body: dict[str, Any], stream: bool, as_list: bool) -> Response:
        fields = Fields(body)
        inputs = fields.text("inputs")
        if not inputs:
            raise BadRequest("inputs must be text of at least one character", "inputs")
        given = Fields(fields.take("parameters", {}), "parameters.")
        fields.take("options")  # of huggingface's hosted service: about its cache and its queue
        fields.done()
        job, form, truncate, best_of = self._read(given, inputs)
        given.done()
        if stream and best_of > 1:
            raise BadRequest("parameters.best_of cannot be streamed", "best_of")
        if stream and form.prompt_details:
            raise BadRequest(
                "parameters.decoder_input_details cannot be streamed: ask /generate", "decoder_input_details"
            )
        job = replace(job, prompt=await self.prompts.completion(inputs, truncate))
        job = requests.fit(job, self.engine)
        if stream:
            return EventStream(request, self._events(self.engine.submit(job), form))
        ticket = self.engine.submit(job)
        answers = await unless_gone(request, collect(ticket))
        best, *others = sorted(answers, key=Answer.mean_logprob, reverse=True) if best_of > 1 else answers
        output: dict[str, Any] = {"generated_text": form.prefix + best.text}
        if form.details:
            output["details"] = self._details(ticket, best, form)
            if others:
                output["details"]["best_of_sequences"] = [
                    {"generated_text": form.prefix + other.text, **self._details(ticket, other, form)}
                    for other in others
                ]
        return JSONResponse([output] if as_list else output)

    def _read(self, given: Fields, inputs: str) -> tuple[Job, Form, int | None, int]:
        """Returns the job, the answer's form, how many of the prompt's last tokens are read, and `best_of`."""
        best_of = given.integer("best_of", 1, 1, MOST_BEST_OF)
        samples = given.flag("do_sample") or best_of > 1
        if samples and "temperature" not in given.given:
            given.given["temperature"] = 1.0
        settings = requests.read_sampling(given, self.engine, best_of)
        given.refuse("use top_p", [1, 1.0], "typical_p")
        given.refuse("answers are not watermarked", [False], "watermark")
        given.refuse(requests.NO_GRAMMAR, (), "grammar")
        given.refuse("there is one model", (), "adapter_id")
        top = given.integer("top_n_tokens", 0, 0, requests.MOST_LOGPROBS)
        details, prompt_details = given.flag("details"), given.flag("decoder_input_details")
        prefix = inputs if given.flag("return_full_text") else ""
        job = Job(
            prompt=[],
            max_tokens=given.integer("max_new_tokens", MAX_TOKENS, 1),
            settings=requests.rows_of(settings, best_of),
            stop=given.texts("stop", requests.MOST_STOPS),
            logprobs=top,
            prompt_logprobs=0 if prompt_details else None,
        )
        form = Form(prefix, details or prompt_details, prompt_details, top)
        return job, form, given.integer("truncate", None, 1), best_of

    def _details(self, ticket: Ticket, answer: Answer, form: Form) -> dict[str, Any]:
        details = {
            "finish_reason": reason_of(answer),
            "generated_tokens": len(answer.scores),
            "seed": seed_of(ticket.job),
            "prefill": [self._token(score) for score in ticket.prompt_scores] if form.prompt_details else [],
            "tokens": [{**self._token(score), "special": special} for score, special in answer.scores],
        }
        if form.top:
            details["top_tokens"] = [self._top(score) for score, _ in answer.scores]
        return details

    def _token(self, score: TokenScore) -> dict[str, Any]:
        return {"id": score.token, "text": token_text(self.engine.tokenizer, score.token)[0], "logprob": score.logprob}

    def _top(self, score: TokenScore) -> list[dict[str, Any]]:
        hidden = self.engine.control.hidden
        return [{**self._token(TokenScore(*pair)), "special": pair[0] in hidden} for pair in score.top]

    async def _events(self, ticket: Ticket, form: Form) -> AsyncIterator[str]:
        """An event per token. The texts of all events together are the answer: each has what is certain by then."""
        answer, index = Answer(), 0
        try:
            async for news in ticket.events():
                answer.add(news)
                index += 1
                text = "".join(text for _, _, text in news.pieces)
                token = {"id": news.score.token, "text": text, "logprob": news.score.logprob, "special": news.special}
                data: dict[str, Any] = {"index": index, "token": token, "generated_text": None, "details": None}
                if form.top:
                    data["top_tokens"] = self._top(news.score)
                if news.finish_reason:
                    data["generated_text"] = form.prefix + answer.text
                    data["details"] = {
                        "finish_reason": reason_of(answer),
                        "generated_tokens": index,
                        "input_length": len(ticket.job.prompt),
                        "seed": seed_of(ticket.job),
                    }
                yield event(data)
        except EngineError as error:
            yield event({"error": str(error), "error_type": "generation"})


def reason_of(answer: Answer) -> str:
    """Why the answer ended, in this protocol's words."""
    if answer.stop is not None:
        return "stop_sequence"
    return "length" if answer.finish_reason == "length" else "eos_token"


def seed_of(job: Job) -> int | None:
    """The seed of a request's random numbers; None where it gave none."""
    seed = job.settings[0].seed
    return seed if isinstance(seed, int) else None
