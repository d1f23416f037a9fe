"""From one number, the depth, to every number of a run.

`depth` is the dial: shape, tokens, batch size, learning rates, weight decay and steps. `plan` says what a run will
need: memory, time and money. `sweep` trains several models with one script and compares them.
"""

from nanochat_hf.scaling.depth import (
    BatchPlan,
    DepthDial,
    Shape,
    depth_dial,
    fit_batch,
    fit_dial,
    lr_scale,
    shape_from_depth,
)

__all__ = ["BatchPlan", "DepthDial", "Shape", "depth_dial", "fit_batch", "fit_dial", "lr_scale", "shape_from_depth"]
