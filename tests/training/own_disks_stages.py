"""The chat stages on one of two machines that share no folder but SHARED; its own disk is the current folder.

    python own_disks_stages.py BASE SHARED

Each stage runs twice: without a break into SHARED, and into a folder of the machine's own. There it is killed after
two steps, the second machine loses its folder, and the stage runs again.
"""

import os
import shutil
import sys
from pathlib import Path

from chat_toy import TEXTS, ShortAnswers, make_base, run_stage

from nanochat_hf import tasks
from nanochat_hf.settings import UserError
from nanochat_hf.trainers.callbacks import TrainingProgress

COMMON = {"num_iterations": 3, "device_batch_size": 2, "save_every": 1, "num_threads": 1, "eval_every": 2}
STAGES = {
    "midtrain": {"tasks": "short", "val_tasks": "short", "total_batch_size": 256},
    "sft": {"tasks": "short", "val_tasks": "short", "total_batch_size": 256},
    "dpo": {"tasks": "short", "num_samples": 4, "max_new_tokens": 12, "pairs_per_step": 2, "top_k": 0, "epochs": 9},
    "rl": {"tasks": "short", "val_tasks": "short", "val_samples": 2, "prompts_per_step": 2, "num_generations": 4}
    | {"max_new_tokens": 12, "top_k": 0, "init_lr_frac": 1.0},
}


class Killed(BaseException):
    """Stands for SIGKILL: no code of ours catches it."""


def kill_after_two_steps(self, args, state, control, **kwargs):
    if state.global_step == 2:
        raise Killed


def run(stage, base, output, **changes):
    options = COMMON | STAGES[stage] | {"model": base, "output_dir": output} | changes
    run_stage(stage, *[word for name, value in options.items() for word in (f"--{name}", value)])


def main(base: str, shared: Path) -> None:
    tasks.load = lambda spec, split: (ShortAnswers(range(24)), 1)
    second = os.environ["RANK"] == "1"
    for stage in STAGES:
        run(stage, base, shared / stage)
        go_on = TrainingProgress.on_step_end
        TrainingProgress.on_step_end = kill_after_two_steps
        try:
            run(stage, base, stage)
        except Killed:
            TrainingProgress.on_step_end = go_on
        print(stage, sorted(str(path) for path in Path(stage).glob("rows-*")), flush=True)
        if second:
            shutil.rmtree(stage)
        run(stage, base, stage)

    own = Path("base")
    shutil.copytree(base, own)
    if second:  # another vocabulary of the same size, with the same model
        make_base(own, sequence_length=64, texts=[text.upper() for text in TEXTS])
    try:
        run("sft", own, "other")
    except UserError as error:
        print(f"refused: {error}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
