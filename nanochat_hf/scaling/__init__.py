"""From one number, the depth, to every number of a run.

`depth` computes shape, tokens, batch size, learning rates, weight decay and steps. `plan` computes memory, time and
cost.
"""

from nanochat_hf.scaling.depth import (
    BatchPlan,
    DepthDial,
    Shape,
    architecture,
    backout_bound,
    depth_dial,
    fit_batch,
    fit_dial,
    lr_scale,
    shape_from_depth,
)

__all__ = [
    "BatchPlan",
    "DepthDial",
    "Shape",
    "architecture",
    "backout_bound",
    "depth_dial",
    "fit_batch",
    "fit_dial",
    "lr_scale",
    "shape_from_depth",
]
