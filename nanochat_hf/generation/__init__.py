"""Tool-using generation: many prompts and many samples in one batch, with the calculator in the loop.

    from nanochat_hf.generation import generate_with_tools, stream_chat

    rollouts = generate_with_tools(model, tokenizer, [[{"role": "user", "content": "What is 12*3?"}]], num_samples=4)
    for chunk in stream_chat(model, tokenizer, messages, temperature=0.8, top_k=50):
        print(chunk.text, end="")

Works on any causal language model of transformers; the calculator joins in where the tokenizer has nanochat's control
tokens. `sampling.py` draws tokens, `turns.py` is the state machine of one assistant's turn, `decoding.py` runs the
batch, `chat.py` holds the two entry points.
"""

from nanochat_hf.generation.chat import (
    Chunk,
    Rollout,
    context_length_of,
    fit_conversation,
    generate_with_tools,
    load_for_chat,
    stream_chat,
)
from nanochat_hf.generation.sampling import Sampling

__all__ = [
    "Chunk",
    "Rollout",
    "Sampling",
    "context_length_of",
    "fit_conversation",
    "generate_with_tools",
    "load_for_chat",
    "stream_chat",
]
