"""An OpenAI-compatible server: transformers' own, taught to find this model's class and to refuse bad requests.

    nanochat-hf serve runs/quickstart/rl --port 8000
    nanochat-hf serve runs/quickstart/rl --continuous-batching    many requests in one batch, for busy servers
    nanochat-hf chat --url http://localhost:8000

Routes: /v1/chat/completions and /v1/completions (streaming or not), /v1/responses, /v1/models, /health; and
text-generation-inference's POST / , /generate and /generate_stream, for huggingface_hub's `text_generation`. In chat
completions the calculator answers inside the model's turn, unless the client brings tools of its own or the server
batches continuously: then the model's calls come back as `tool_calls`.
"""

import argparse
import math
from typing import Any

from nanochat_hf.settings import UserError

CPU_CACHE_CONTEXTS = 32  # full contexts that the paged cache holds on a CPU


def main(argv: list[str]) -> None:
    """The `serve` command."""
    options = _parse(argv)
    if not 0 <= options.port < 65536:
        raise UserError(f"--port must be between 0 and 65535, not {options.port}")
    from nanochat_hf.generation.loading import check_checkpoint

    check_checkpoint(options.checkpoint)  # else it would only be noticed as a failed download
    try:
        from transformers.cli import serve
        from transformers.cli.serving import model_manager

        _install(options.checkpoint, options.compile)
    except ImportError as error:
        raise UserError(f"serving needs more packages ({error}): pip install 'nanochat-hf[serve]'") from None

    from nanochat_hf import NanochatHFForCausalLM

    # The server looks the architecture up as an attribute of the transformers module, the one that it holds itself.
    model_manager.transformers.NanochatHFForCausalLM = NanochatHFForCausalLM
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


def _install(checkpoint: str, compiled: bool) -> None:
    """Puts our handlers where transformers' server takes its own from, and our routes beside its."""
    from transformers.cli.serving import chat_completion, completion, server

    from nanochat_hf.serving import handlers, text_generation

    build_server = server.build_server

    def build_with_more_routes(*args: Any, **kwargs: Any) -> Any:
        app = build_server(*args, **kwargs)
        text_generation.add_routes(app, kwargs["completion_handler"])
        # transformers lists what is in the Hub's cache; this server has one model.
        app.router.routes = [route for route in app.router.routes if getattr(route, "path", "") != "/v1/models"]

        @app.get("/v1/models")
        def list_models() -> dict[str, Any]:
            return {"object": "list", "data": [{"id": checkpoint, "object": "model", "owned_by": "", "created": 0}]}

        return app

    handlers.Chat.compiled = compiled
    chat_completion.ChatCompletionHandler, completion.CompletionHandler = handlers.Chat, handlers.Completion
    server.build_server = build_with_more_routes


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
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the steps of chats: a fifth to a third faster on a CPU, after a minute's work at the first one",
    )
    return parser.parse_args(argv)
