"""The page of a metric's Space on the Hub: a form that computes the metric."""

from pathlib import Path

import evaluate
from evaluate.utils import launch_gradio_widget

(script,) = (path for path in Path(__file__).parent.glob("*.py") if path.stem not in ("app", "formulas"))
launch_gradio_widget(evaluate.load(str(script)))
