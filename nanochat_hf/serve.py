"""An OpenAI-compatible server: transformers' own, taught to find this model's class.

    nanochat-hf serve runs/quickstart/rl --port 8000
    nanochat-hf chat --url http://localhost:8000

Routes: /v1/chat/completions and /v1/completions (streaming or not), /v1/responses, /v1/models, /health. The calculator
is not in the loop here: it answers in `nanochat-hf chat CHECKPOINT` and in the Space.
"""

import argparse

from nanochat_hf.settings import UserError


def main(argv: list[str]) -> None:
    """The `serve` command."""
    parser = argparse.ArgumentParser(
        prog="nanochat-hf serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="checkpoint folder or Hub id")
    parser.add_argument("--host", default="localhost", help="address to listen on (localhost)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (8000)")
    parser.add_argument("--device", default="auto", help="such as cpu or cuda:0")
    parser.add_argument("--dtype", default="auto", help="such as bfloat16; default: the checkpoint's own")
    options = parser.parse_args(argv)
    try:
        from transformers.cli.serve import Serve
        from transformers.cli.serving import model_manager
        from transformers.cli.serving.utils import BaseHandler
    except ImportError as error:
        raise UserError(f"serving needs more packages ({error}): pip install 'nanochat-hf[serve]'") from None

    from nanochat_hf import NanochatHFForCausalLM

    # The server looks the architecture up as an attribute of the transformers module, the one that it holds itself.
    model_manager.transformers.NanochatHFForCausalLM = NanochatHFForCausalLM
    resolve = BaseHandler._resolve_model

    def resolve_any_name(handler, body: dict):
        """Clients must send some model name; there is one model here, so any will do."""
        return resolve(handler, {**body, "model": None})

    BaseHandler._resolve_model = resolve_any_name
    Serve(
        force_model=options.checkpoint,
        device=options.device,
        dtype=options.dtype,
        host=options.host,
        port=options.port,
    )
