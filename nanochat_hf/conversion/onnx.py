"""Export of a model to one ONNX graph, for runtimes without transformers and torch."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..settings import UserError


class Logits(nn.Module):
    """The function to export: ids [B, T] → fp32 logits [B, T, V], without a cache."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits


def export_onnx(model: Any, path: Path) -> None:
    """Writes `path`, and beside it the weights where they are too large for one file.

    Batch size and length are free. The graph has no cache: a sampler on top of it runs the whole text again for each
    token, so it suits scoring and short answers.

    Args:
        model: the language model; it is changed to fp32 and evaluation mode.
        path: file to write.

    Raises:
        UserError: the packages that write ONNX are not installed.
    """
    try:
        import onnxscript  # noqa: F401  torch's exporter needs it, and fails late without
    except ImportError:
        raise UserError("exporting to ONNX needs more packages: pip install 'nanochat-hf[onnx]'") from None
    ids = torch.zeros(2, 8, dtype=torch.long)
    free = {"input_ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}}
    program = torch.onnx.export(
        Logits(model.float().eval()).eval(),
        (ids,),
        input_names=["input_ids"],
        output_names=["logits"],
        dynamic_shapes=free,
        dynamo=True,
        verbose=False,
    )
    program.save(path, external_data=model.num_parameters() * 4 > 2**30)
