"""Serves a checkpoint over HTTP, for OpenAI clients and for clients of text-generation-inference.

    nanochat-hf serve runs/quickstart/rl --port 8000
    nanochat-hf serve runs/quickstart/rl --continuous-batching    many requests in one batch, for busy servers
    nanochat-hf chat --url http://localhost:8000                  talk to it, in another terminal

Routes:
    /v1/chat/completions, /v1/completions     whole answers or streams
    /v1/responses, /v1/models, /health
    / , /generate, /generate_stream           text-generation-inference, for huggingface_hub's `text_generation`

In chat completions the calculator answers inside the model's turn. If the client brings its own tools, or with
--continuous-batching, the model's calls come back as `tool_calls` instead.
"""

import argparse
import math
from typing import Any

from nanochat_hf.settings import UserError

CPU_CACHE_CONTEXTS = 32  # the size of the paged cache on a CPU, in full contexts


def main(argv: list[str]) -> None:
    """Runs the `serve` command until the process is stopped.

    Raises:
        UserError: a wrong option, no such checkpoint, or packages are missing.
    """
    options = _parse(argv)
    if not 0 <= options.port < 65536:
        raise UserError(f"--port must be between 0 and 65535, not {options.port}")
    from nanochat_hf.generation import check_checkpoint

    check_checkpoint(options.checkpoint)  # before the packages of the server are imported
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise UserError("serving needs more packages (fastapi, uvicorn, openai): pip install 'nanochat-hf[serve]'")
    import uvicorn
    from transformers.cli.serving.utils import GenerationState

    from nanochat_hf.serving.app import OneModelManager, build_app

    manager = OneModelManager(options.checkpoint, options.device, options.dtype)
    state = GenerationState(
        continuous_batching=options.continuous_batching,
        cb_config=_cpu_cache_config(manager.model) if options.continuous_batching else None,
    )
    app = build_app(manager, state, compiled=options.compile)
    uvicorn.run(app, host=options.host, port=options.port, log_level="info")


def _cpu_cache_config(model: Any) -> Any:
    """Returns the size of the paged cache for a model on a CPU, or None for transformers' default.

    The default takes nine tenths of the memory: right for a GPU's memory, not for the machine's.
    """
    from transformers import ContinuousBatchingConfig

    if model.device.type != "cpu":
        return None
    context = model.config.max_position_embeddings
    pages = math.ceil(context / ContinuousBatchingConfig().page_size)
    return ContinuousBatchingConfig(num_blocks=CPU_CACHE_CONTEXTS * pages, max_batch_tokens=context)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="nanochat-hf serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint folder or Hub id")
    parser.add_argument("--host", default="localhost", help="address to listen on (default localhost)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default 8000)")
    parser.add_argument("--device", default="auto", help="such as cpu or cuda:0 (default: the GPU if there is one)")
    parser.add_argument("--dtype", default="auto", help="such as bfloat16 (default: the checkpoint's own)")
    parser.add_argument(
        "--continuous-batching",
        action="store_true",
        help="answer all requests in one batch over a paged cache; the first request's temperature, top-p and top-k "
        "then apply to all requests (a limit of transformers' server)",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the decoding steps of chats: a fifth to a third less time on a CPU, after about a minute at the "
        "first chat",
    )
    return parser.parse_args(argv)
