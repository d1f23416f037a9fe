"""The web application of `nanochat-hf serve`: its routes, and the one model behind them."""

import uuid
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.utils import X_REQUEST_ID, CBWorkerDeadError, GenerationState

from nanochat_hf.generation import load_checkpoint
from nanochat_hf.serving import text_generation
from nanochat_hf.serving.handlers import ChatHandler, CompletionHandler


class OneModelManager(ModelManager):
    """transformers' model manager with one checkpoint, loaded by [`load_checkpoint`].

    transformers' own manager loads by class name from its own module, and so cannot find this project's class. It also
    loads any model that a client names.

    Attributes:
        model: on its device, in evaluation mode.
        tokenizer: its tokenizer.
        model_id: the name in answers, "CHECKPOINT@main".
    """

    def __init__(self, checkpoint: str, device: str = "auto", dtype: str = "auto"):
        """Loads the checkpoint.

        Raises:
            UserError: it cannot be loaded, or the device or dtype does not exist.
        """
        self.model, self.tokenizer = load_checkpoint(checkpoint, device=device, dtype=dtype)
        self.model_id = self.process_model_name(checkpoint)
        super().__init__(device=device, dtype=dtype, force_model=checkpoint)

    def load_model_and_processor(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Returns (model, tokenizer), whatever model is asked for."""
        return self.model, self.tokenizer


def build_app(manager: OneModelManager, state: GenerationState, compiled: bool = False) -> FastAPI:
    """Builds the application; `docs/serving.md` lists what each route does.

    Args:
        state: transformers' record of its generation threads; it decides whether requests are batched continuously.
        compiled: compiles the decoding steps of chats.
    """
    app = FastAPI()
    chat = ChatHandler(manager, state, compiled=compiled)
    completion = CompletionHandler(manager, state)
    response = ResponseHandler(manager, state)

    @app.middleware("http")
    async def give_request_id(request: Request, call_next: Any) -> Any:
        """The client's request id, or a new one; the answer's header repeats it."""
        request.state.request_id = request.headers.get(X_REQUEST_ID) or str(uuid.uuid4())
        answer = await call_next(request)
        answer.headers[X_REQUEST_ID] = request.state.request_id
        return answer

    @app.exception_handler(CBWorkerDeadError)
    async def report_dead_worker(_request: Request, error: CBWorkerDeadError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=503)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request, body: dict) -> Any:
        return await chat.handle_request(body, request.state.request_id)

    @app.post("/v1/completions")
    async def completions(request: Request, body: dict) -> Any:
        return await completion.handle_request(body, request.state.request_id)

    @app.post("/v1/responses")
    async def responses(request: Request, body: dict) -> Any:
        return await response.handle_request(body, request.state.request_id)

    @app.get("/v1/models")
    def list_models() -> dict[str, Any]:
        model = {"id": manager.force_model, "object": "model", "owned_by": "", "created": 0}
        return {"object": "list", "data": [model]}

    @app.get("/health")
    def health() -> JSONResponse:
        if not state.is_cb_alive():
            return JSONResponse({"status": "unhealthy", "reason": "cb_worker_dead"}, status_code=503)
        return JSONResponse({"status": "ok"})

    text_generation.add_routes(app, completion)
    return app
