"""What the terminal chat and the page share: a model to talk to, here or behind a server, and questions to ask it.

The files:

    models        Model, the interface, and LocalModel: a checkpoint in this process
    endpoint      RemoteModel: a model behind an OpenAI-compatible or a text-generation-inference server
    suggestions   questions that a checkpoint can answer, from its run.json and its evaluation
"""

from nanochat_hf.chat.endpoint import RemoteModel
from nanochat_hf.chat.models import Answer, LocalModel, Model, Piece, for_model, read_message
from nanochat_hf.chat.suggestions import Suggestion, suggestions

__all__ = [
    "Answer",
    "LocalModel",
    "Model",
    "Piece",
    "RemoteModel",
    "Suggestion",
    "for_model",
    "read_message",
    "suggestions",
]
