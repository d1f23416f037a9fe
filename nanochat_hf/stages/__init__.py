"""What a user starts: one file per stage of the pipeline, and the commands around it. Each `main` is a command.

`nanochat-hf sft`, `python training/sft.py` and `python -m nanochat_hf.stages.sft` (what `accelerate launch -m` takes)
run the same function. A stage reads like its story: parse the settings, load what the stage before made, train, write.

- `speedrun` runs all stages of a recipe, each as a process of its own (`nanochat-hf train`).
- `tokenizer`, `pretrain`, `midtrain`, `sft`, `dpo` and `rl` are the training stages.
- `evaluate` and `evaluate_tokenizer` measure, `report` writes the results on one page.
- `make_shards` prepares data, `miniseries` and `scaling_laws` train several models and compare them (`sweep`).

Nothing slow is imported before the settings are checked.
"""
