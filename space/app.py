"""A chat page for a nanochat-hf model. It runs on your machine, and unchanged on a Hugging Face Space.

    python space/app.py runs/quickstart/rl            then open http://127.0.0.1:7860
    NANOCHAT_MODEL=user/model python space/app.py     the same, with the model from the environment, as on a Space

Answers appear while they are generated. Gradio's buttons stop, retry, undo and edit. Calculator calls show as
⟨12*3 = 36⟩.
"""

import argparse
import os
import re
from collections.abc import Iterator
from typing import Any

import gradio as gr

from nanochat_hf.generation import (
    DEFAULT_CONTEXT_LENGTH,
    context_length_of,
    fit_conversation,
    load_checkpoint,
    stream_chat,
)
from nanochat_hf.generation.tool_loop import segment_separator
from nanochat_hf.settings import UserError, run_main

MAX_CHARACTERS = 8_000  # of one message, and of the system message
TOOL_CALL = re.compile(r"⟨([^⟨⟩]*?)(?: = ([^⟨⟩]*))?⟩")


def build(model: Any, tokenizer: Any, name: str) -> gr.ChatInterface:
    """Builds the page for a loaded model.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        tokenizer: its tokenizer, with a chat template.
        name: the title of the page.
    """
    context = context_length_of(model) or DEFAULT_CONTEXT_LENGTH

    def respond(
        message: str,
        history: list[dict[str, Any]],
        system: str,
        temperature: float,
        top_k: int,
        top_p: float,
        max_new_tokens: int,
    ) -> Iterator[str]:
        """Yields the answer's text so far, again and again until it is complete. An error becomes a notice."""
        if not message.strip():
            raise gr.Error("Please write something first.")
        if max(len(message), len(system)) > MAX_CHARACTERS:
            raise gr.Error(f"That is longer than {MAX_CHARACTERS:,} characters; please shorten it.")
        messages = [{"role": "system", "content": system}] if system.strip() else []
        messages += [*map(read_message, history), {"role": "user", "content": message}]
        sampling = dict(temperature=temperature, top_k=int(top_k), top_p=top_p, max_new_tokens=int(max_new_tokens))
        try:
            messages, dropped = fit_conversation(tokenizer, messages, context, int(max_new_tokens))
        except UserError as error:
            raise gr.Error(str(error)) from None
        if dropped:
            gr.Info(f"The context is full: the oldest {dropped} messages were left out.")
        shown, before = "", "text"
        for chunk in stream_chat(model, tokenizer, messages, **sampling):
            kind = "text" if chunk.type == "end" else chunk.type
            shown += segment_separator(before, kind) + chunk.text
            before = kind
            yield shown

    longest = max(1, min(2048, context // 2))
    return gr.ChatInterface(
        respond,
        title=name,
        description="A language model trained from scratch with nanochat-hf. It is small, and wrong now and then.",
        # Plain text, not Markdown: what the model writes is shown as it is and never becomes HTML.
        chatbot=gr.Chatbot(render_markdown=False, buttons=["copy"], height="70vh"),
        additional_inputs=[
            gr.Textbox("", label="System message", lines=2, max_length=MAX_CHARACTERS),
            gr.Slider(0, 2, value=0.6, step=0.05, label="Temperature (0: always the most likely token)"),
            gr.Slider(0, 200, value=50, step=1, label="Top-k (0: off)"),
            gr.Slider(0.05, 1, value=1, step=0.05, label="Top-p"),
            gr.Slider(1, longest, value=min(512, longest), step=1, label="Longest answer, in tokens"),
        ],
        additional_inputs_accordion=gr.Accordion("Settings", open=False),
        examples=[["Who are you?"], ["What is 128 * 7?"], ["How many r are in strawberry?"]],
        cache_examples=False,  # a Space would run them at every start
        editable=True,
        concurrency_limit=1,
        api_name="chat",
    )


def read_message(entry: dict[str, Any]) -> dict[str, Any]:
    """Turns a message of Gradio's history into a message for the model; ⟨calls⟩ of the assistant become tool parts."""
    content = entry["content"]
    if not isinstance(content, str):  # Gradio's list of {"type": "text", "text": …}
        content = "".join(part.get("text", "") for part in content)
    if entry["role"] != "assistant" or not TOOL_CALL.search(content):
        return {"role": entry["role"], "content": content}
    parts, end = [], 0
    for call in TOOL_CALL.finditer(content):
        parts.append({"type": "text", "text": content[end : call.start()]})
        parts.append({"type": "python", "text": call[1]})
        if call[2] is not None:
            parts.append({"type": "python_output", "text": call[2]})
        end = call.end()
    parts.append({"type": "text", "text": content[end:]})
    return {"role": "assistant", "content": [part for part in parts if part["text"]]}


def main() -> None:
    """Loads the model and serves the page.

    Raises:
        UserError: no model is named, or it cannot be loaded.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default=os.environ.get("NANOCHAT_MODEL"),
        help="checkpoint folder or Hub id (default: the environment variable NANOCHAT_MODEL)",
    )
    parser.add_argument(
        "--host",
        default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        help="address to listen on (default 127.0.0.1)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        help="port to listen on (default 7860)",
    )
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: the GPU if there is one)")
    options = parser.parse_args()
    if not options.model:
        raise UserError(
            "no model is named: give a checkpoint folder or a Hub id, as the argument or in NANOCHAT_MODEL"
        )
    app = build(*load_checkpoint(options.model, device=options.device), os.path.basename(options.model.rstrip("/")))
    app.queue(max_size=16).launch(server_name=options.host, server_port=options.port)


if __name__ == "__main__":
    run_main(main)
