"""Trainers of all stages: transformers' and TRL's, with nanochat's optimizer, schedules and checkpoints.

`pretraining` trains on packed text; its docstring tells the order of a training step. `supervised` trains on
conversations (midtraining and SFT), `preferences` on pairs of answers (DPO), `grpo` lets the model answer and learns
from the rewards; importing these three imports TRL. `mixin` is the optimizer for any Trainer, `stage` what all stages
share.
"""
