"""Generation with tools: many prompts and samples in one batch, or one turn as a stream, with tools inside.

    from nanochat_hf.generation import generate_with_tools, load_checkpoint, stream_chat

    model, tokenizer = load_checkpoint("runs/quickstart/rl")
    messages = [{"role": "user", "content": "What is 12*3?"}]
    rollouts = generate_with_tools(model, tokenizer, [messages], num_samples=4)
    for chunk in stream_chat(model, tokenizer, messages, temperature=0.8, top_k=50):
        print(chunk.text, end="")

It works with any causal language model of transformers. The tools of `nanochat_hf.tools.registry` are used if the
tokenizer has nanochat's control tokens.

The files, from the entry points down:

    batch            generate_with_tools: many turns at once
    stream           stream_chat: one turn while it is generated
    own_tools        many turns of a model of another kind, which calls tools in the form of its own template
    chat_format      how a model's conversations are written: its own chat template, or ours
    prompts          conversations → token ids; what to leave out if the context is full
    decoding         the batched loop, and the set-up that both entry points share
    tool_loop        one assistant turn: its tool calls, their answers and its end
    sampling         how the next token is sampled
    forward_decoder  next-token logits of any model, through model.forward
    fast_decoder     the same for this project's models, one token at a time and faster
    loading          checkpoints, devices, context length
"""

from nanochat_hf.generation.batch import generate_with_tools
from nanochat_hf.generation.loading import (
    DEFAULT_CONTEXT_LENGTH,
    allow_tf32,
    context_length_of,
    load_checkpoint,
    pick_device,
)
from nanochat_hf.generation.prompts import fit_conversation
from nanochat_hf.generation.sampling import Sampling
from nanochat_hf.generation.stream import Chunk, stream_chat
from nanochat_hf.generation.tool_loop import Rollout

__all__ = [
    "DEFAULT_CONTEXT_LENGTH",
    "Chunk",
    "Rollout",
    "Sampling",
    "allow_tf32",
    "context_length_of",
    "fit_conversation",
    "generate_with_tools",
    "load_checkpoint",
    "pick_device",
    "stream_chat",
]
