"""The web application of `nanochat-hf serve`: its routes, and the one model behind them."""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from nanochat_hf.serving.engine import Engine, EngineError
from nanochat_hf.serving.fields import BadRequest
from nanochat_hf.serving.openai_api import OpenAIRoutes
from nanochat_hf.serving.prompts import PromptReader
from nanochat_hf.serving.responses_api import ResponsesRoute
from nanochat_hf.serving.text_generation import TextGenerationRoutes
from nanochat_hf.serving.web import CLIENT_GONE, ClientGone, Gate, TooLarge, error_response, too_large


def build_app(engine: Engine, model_id: str, *, api_key: str | None = None, origins: Sequence[str] = ()) -> Any:
    """Builds the application; `docs/serving.md` lists what each route does.

    The application starts the engine, and at its end waits until all answers are written.

    Args:
        engine: the loaded model, not started yet.
        model_id: its name in answers.
        api_key: what clients must send as a bearer token; None lets everybody in.
        origins: web pages whose scripts may read the answers; "*" for all.
    """
    prompts = PromptReader(engine)
    openai = OpenAIRoutes(engine, prompts, model_id)
    responses = ResponsesRoute(engine, prompts, model_id)
    generation = TextGenerationRoutes(engine, prompts, model_id)

    async def health(_request: Request) -> Response:
        if not engine.alive():
            raise EngineError("the engine has stopped")
        return JSONResponse({"status": "ok"})

    async def metrics(_request: Request) -> Response:
        running, waiting = engine.load()
        text = engine.metrics.text(nanochat_running=running, nanochat_waiting=waiting)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    def post(path: str, handler: Callable, text_generation: bool = False) -> Route:
        return Route(path, answering(handler, text_generation), methods=["POST"])

    def get(path: str, handler: Callable) -> Route:
        return Route(path, answering(handler), methods=["GET"])

    routes = [
        post("/v1/chat/completions", openai.chat),
        post("/v1/completions", openai.completions),
        post("/v1/responses", responses.respond),
        get("/v1/models", openai.models),
        get("/v1/models/{name:path}", openai.model),
        post("/tokenize", openai.tokenize),
        post("/detokenize", openai.detokenize),
        post("/", generation.root, text_generation=True),
        post("/generate", generation.generate, text_generation=True),
        post("/generate_stream", generation.generate_stream, text_generation=True),
        get("/info", generation.info),
        get("/health", health),
        get("/ping", health),
        get("/metrics", metrics),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        engine.start()
        try:
            yield
        finally:
            engine.stop()
            prompts.threads.shutdown()

    async def not_found(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code in (404, 405):
            what = "no route" if error.status_code == 404 else f"no {request.method} on the route"
            message = f"there is {what} {request.url.path}"
            return error_response(HTTPException(error.status_code, message, error.headers))
        return error_response(error)

    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: not_found})
    return Gate(app, metrics=engine.metrics, api_key=api_key, origins=origins)


def answering(handler: Callable, text_generation: bool = False) -> Callable:
    """Wraps a handler: its errors become answers in the form that its clients read."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientGone:
            return Response(status_code=CLIENT_GONE)
        except TooLarge:
            return too_large()
        except (BadRequest, EngineError) as error:
            return error_response(error, text_generation)
        except Exception as error:  # of any kind: the client gets an error in a form that it can read
            return error_response(error, text_generation)

    return answer
