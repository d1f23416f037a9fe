"""A chat page for a nanochat-hf model. It runs on your machine, and unchanged on a Hugging Face Space.

    python space/app.py runs/quickstart/rl            then open http://127.0.0.1:7860
    python space/app.py --help                        every setting

The page itself is the package nanochat_hf.page. `nanochat-hf push RUN/rl user/name --space` makes the Space.
"""

import importlib
import os
import sys
from pathlib import Path

if os.environ.get("SPACES_ZERO_GPU"):
    importlib.import_module("spaces")  # it comes with the hardware, and has to come before torch

HERE = Path(__file__).resolve().parent
if not (HERE / "nanochat_hf").is_dir():
    sys.path.insert(0, str(HERE.parent))  # in the project's folder the package lies beside this one

from nanochat_hf.page.command import main  # noqa: E402
from nanochat_hf.settings import run_main  # noqa: E402

if __name__ == "__main__":
    run_main(lambda: main(home=HERE))
