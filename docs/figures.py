"""Draws the figures of docs/ that are computed: `python docs/figures.py` writes them beside itself.

`depth-dial.svg` shows what `nanochat_hf.scaling.depth_dial` makes of a depth, for depths 4 to 32 with the default
vocabulary (32,768) and row length (2,048). Nothing is measured here. `block.svg` and `pipeline.svg` are drawn by hand.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from nanochat_hf.scaling import depth_dial
from nanochat_hf.scaling.depth import DepthDial

FOLDER = Path(__file__).resolve().parent
DEPTHS = {"modern": range(4, 33), "classic": range(4, 33, 2)}  # classic widths need an even depth
# Okabe and Ito's colours for colour-blind readers, and a dash pattern for those who print in black.
STYLES = {"modern": ("#0072B2", "-"), "classic": ("#D55E00", "--")}
PANELS: tuple[tuple[str, Callable[[DepthDial], float], int | None], ...] = (  # title, value, base of a log axis
    ("width (channels)", lambda dial: dial.hidden_size, None),
    ("parameters (millions)", lambda dial: dial.params / 1e6, 10),
    ("training tokens (billions)", lambda dial: dial.total_tokens / 1e9, 10),
    ("tokens per step", lambda dial: dial.total_batch_size, 2),
    ("learning-rate factor", lambda dial: dial.lr_scale, None),
    ("Muon's weight decay (classic: 0)", lambda dial: dial.weight_decay, 10),
)


def draw_depth_dial(path: Path) -> None:
    """Writes six panels over depth; axes are logarithmic where the values span more than a factor of ten."""
    figure = Figure(figsize=(9.6, 5.2), layout="constrained", facecolor="white")
    for number, (title, value, base) in enumerate(PANELS, start=1):
        axes = figure.add_subplot(2, 3, number)
        for preset, depths in DEPTHS.items():
            values = [value(depth_dial(depth, preset=preset)) for depth in depths]
            if base is None or min(values) > 0:  # a logarithmic axis has no zero: the title says it
                colour, dashes = STYLES[preset]
                axes.plot(
                    depths, values, dashes, color=colour, linewidth=1.5, marker="o", markersize=2.5, label=preset
                )
        _finish_panel(axes, title, base)
        if number > 3:
            axes.set_xlabel("depth (number of layers)")
        if number == 1:
            axes.legend(frameon=False, fontsize=9)
    with matplotlib.rc_context({"svg.hashsalt": "nanochat-hf"}):  # the same file from the same values
        figure.savefig(path, metadata={"Date": None})


def _finish_panel(axes: Axes, title: str, base: int | None) -> None:
    if base is not None:
        axes.set_yscale("log", base=base)
    if base == 10:
        axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif base == 2:
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title(title, fontsize=10)
    axes.set_xticks(range(4, 33, 4))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


if __name__ == "__main__":
    draw_depth_dial(FOLDER / "depth-dial.svg")
    print(f"{FOLDER / 'depth-dial.svg'} written")
