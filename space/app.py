"""A chat page for a nanochat-hf model. It runs on your machine, and unchanged on a Hugging Face Space.

    python space/app.py runs/quickstart/rl            then open http://127.0.0.1:7860
    python space/app.py --help                        every setting

The page itself is the package nanochat_hf.page. `nanochat-hf push RUN/rl user/name --space` makes the Space.
"""

from pathlib import Path

from nanochat_hf.page.command import main
from nanochat_hf.settings import run_main

if __name__ == "__main__":
    run_main(lambda: main(home=Path(__file__).parent))
