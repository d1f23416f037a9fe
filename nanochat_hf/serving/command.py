"""Serves a checkpoint over HTTP, for OpenAI clients and for clients of text-generation-inference.

    nanochat-hf serve runs/quickstart/rl --port 8000
    nanochat-hf chat --url http://localhost:8000                  talk to it, in another terminal
    NANOCHAT_API_KEY=secret nanochat-hf serve runs/quickstart/rl  only who sends this key is answered

Routes:
    /v1/chat/completions, /v1/completions, /v1/responses    whole answers or streams
    /v1/models, /tokenize, /detokenize, /health, /metrics
    / , /generate, /generate_stream, /info                  text-generation-inference, for its own client and for
                                                            huggingface_hub's `text_generation`

All requests are answered in one batch, each with its own sampling settings. In chats the calculator answers inside the
model's turn. A call of a function that the client brings as one of its `tools` ends the turn instead.
"""

import argparse
import gc
import os
import re
import threading

from nanochat_hf.settings import DTYPES, Parser, UserError, check_address, check_device, checked, find_checkpoint

KEY_VARIABLE = "NANOCHAT_API_KEY"


def main(argv: list[str]) -> None:
    """Runs the `serve` command until the process is stopped.

    Raises:
        UserError: a wrong option, no such checkpoint, or packages are missing.
    """
    options = _parse(argv)
    key = _key()
    check_device(options.device)
    find_checkpoint(options.checkpoint)  # before torch and the packages of the server are imported
    check_address(options.host, options.port)
    try:
        import uvicorn

        from nanochat_hf.serving.app import build_app
    except ImportError as error:
        raise UserError(
            f"serving needs more packages ({error.name} is missing): pip install 'nanochat-hf[serve]'"
        ) from None
    from nanochat_hf.generation import load_checkpoint
    from nanochat_hf.serving.engine import Engine

    model, tokenizer = load_checkpoint(options.checkpoint, device=options.device, dtype=options.dtype)
    engine = Engine(model, tokenizer, max_batch=options.max_batch, max_waiting=options.max_waiting)
    app = build_app(engine, options.checkpoint, api_key=key, origins=options.cors)
    # A full collection looks at every object of the process, most of them the libraries', and stops all threads for
    # 0.3 s of processor time: seconds on a busy machine. What is frozen is looked at no more.
    gc.collect()
    gc.freeze()
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        log_level="info",
        access_log=options.log_requests,
        timeout_graceful_shutdown=options.shutdown_seconds,
    )
    if engine.alive():  # only where the time for a clean end was not enough
        threading.Timer(1, os._exit, (1,)).start()


def _key() -> str | None:
    """The key that clients must send; None lets everybody in."""
    key = os.environ.get(KEY_VARIABLE) or None
    if key and not (key.isascii() and key.isprintable() and key == key.strip()):
        raise UserError(f"{KEY_VARIABLE} must be printable ASCII without spaces around it, as headers are; change it")
    return key


def _origin(text: str) -> str:
    """An origin as browsers send it, or "*"."""
    if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#\s]+", text):
        raise argparse.ArgumentTypeError(f"such as https://example.org, without a path, or *, not {text!r}")
    return text


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="nanochat-hf serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint folder or Hub id")
    parser.add_argument("--host", default="localhost", help="address to listen on (default localhost)")
    parser.add_argument(
        "--port", type=checked(int, at_least=0, at_most=65535), default=8000, help="port to listen on (default 8000)"
    )
    parser.add_argument("--device", default="auto", help="such as cpu or cuda:0 (default: the GPU if there is one)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="such as bfloat16 (default: the checkpoint's own)"
    )
    parser.add_argument(
        "--max-batch",
        type=checked(int, at_least=1, at_most=65536),
        default=32,
        help="answers that are written at once; more requests wait (default 32)",
    )
    parser.add_argument(
        "--max-waiting",
        type=checked(int, at_least=1, at_most=1_000_000),
        default=256,
        help="prompts that may wait; while so many do, requests get status 503 and a time to try again (default 256)",
    )
    parser.add_argument(
        "--cors",
        action="append",
        type=_origin,
        default=[],
        metavar="ORIGIN",
        help="a web page whose scripts may read the answers, such as https://example.org; * for all; may be repeated",
    )
    parser.add_argument("--log-requests", action="store_true", help="print a line per request")
    parser.add_argument(
        "--shutdown-seconds",
        type=checked(int, at_least=0, at_most=86400),
        default=60,
        help="how long running answers may take to end when the server is stopped (default 60)",
    )
    parser.add_argument("--continuous-batching", action="store_true", help=argparse.SUPPRESS)  # now always so
    return parser.parse_args(argv)
