"""Tool-using generation: many prompts and many samples in one batch, with the calculator in the loop.

    from nanochat_hf.generation import generate_with_tools, stream_chat

    rollouts = generate_with_tools(model, tokenizer, [[{"role": "user", "content": "What is 12*3?"}]], num_samples=4)
    for chunk in stream_chat(model, tokenizer, messages, temperature=0.8, top_k=50):
        print(chunk.text, end="")

Works on any causal language model of transformers; the calculator joins in where the tokenizer has nanochat's control
tokens.

`batch` and `stream` are the two entry points, for many turns at once and for one turn that is shown while it grows.
`tool_loop` follows one assistant turn and answers its tool calls, `sampling` draws tokens, `decoding` runs a batch to
its end, `fast_decoder` computes the single steps of this project's own models, `loading` loads checkpoints.
"""

from nanochat_hf.generation.batch import Rollout, generate_with_tools
from nanochat_hf.generation.loading import context_length_of, load_checkpoint, pick_device
from nanochat_hf.generation.sampling import Sampling
from nanochat_hf.generation.stream import Chunk, fit_conversation, stream_chat

__all__ = [
    "Chunk",
    "Rollout",
    "Sampling",
    "context_length_of",
    "fit_conversation",
    "generate_with_tools",
    "load_checkpoint",
    "pick_device",
    "stream_chat",
]
