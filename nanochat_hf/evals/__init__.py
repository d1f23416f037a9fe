"""Evaluations as a library, for the scripts of `evaluation/` and for the callbacks of the trainers.

- `bits_per_byte`, `core` and `tasks` (the chat tasks) each measure one thing, for any causal language model.
- `microworld_bundle` makes completion tasks in the format of CORE without a download.
- `evaluated_model` is a model with its tokenizer and prompt format; `scoring` runs its forward passes.
- `headlines` lists the metrics that sum up an evaluation; `metrics` computes them, and their intervals.
- `runner` evaluates checkpoints and writes `eval/<name>.json`.
"""
