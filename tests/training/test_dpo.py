"""DPO: what a pair becomes, the loss by hand, pairs of a model's own answers, learning, resuming."""

import json
import shutil

import pytest
import torch
from chat_toy import ShortAnswers, make_base, run_stage, weights

from nanochat_hf import tasks
from nanochat_hf.generation import generate_with_tools, load_checkpoint
from nanochat_hf.settings import UserError


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("run") / "base", sequence_length=64)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Short and correct is preferred to long and wrong; a call of the calculator inside."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    with path.open("w") as file:
        for n in range(40):
            question = f"What is {n % 7} + {n % 5}?"
            long = f"Hello! Anna has {n} apples and gives 2 away. It is {n % 7 + n % 5 + 1}."
            file.write(json.dumps({"prompt": question, "chosen": f"{n % 7 + n % 5}.", "rejected": long}) + "\n")
    return path


def arguments(base, output, **changes):
    options = {"model": base, "output_dir": output, "pairs_per_step": 8, "device_batch_size": 4}
    options |= {"max_new_tokens": 16, "top_k": 0, "save_every": 0, "init_lr_frac": 0.2, "seed": 1} | changes
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def test_pairs_of_a_file_are_learned(base, pairs, tmp_path):
    task = f"preferences={pairs}"
    steps = {"epochs": 3, "eval_every": 5}
    run_stage("dpo", *arguments(base, tmp_path / "out", tasks=task, val_tasks=f"{task}@12", **steps))
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["metrics"]["val_accuracy_pairs"] == 1.0 and run["metrics"]["val_loss_pairs"] < 0.4
    measured = [row["val_margin_pairs"] for row in run["history"] if "val_margin_pairs" in row]
    assert len(measured) >= 3 and measured[-1] > measured[0] > 0
    assert not list((tmp_path / "out").glob("rows-*"))


def test_more_steps_than_one_pass_has_take_further_passes(base, pairs, tmp_path):
    run_stage("dpo", *arguments(base, tmp_path / "out", tasks=f"preferences={pairs}@12", num_iterations=5))
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert max(row["step"] for row in run["history"]) == 5


def test_the_models_own_answers_become_pairs_and_its_score_rises(base, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "load", lambda spec, split: (ShortAnswers(range(48)), 1))
    options = {"tasks": "short", "num_samples": 8, "epochs": 5, "init_lr_frac": 1.0}
    run_stage("dpo", *arguments(base, tmp_path / "out", **options))
    scores = []
    for folder in (base, tmp_path / "out"):
        model, tokenizer = load_checkpoint(folder, device="cpu")
        task = ShortAnswers(range(3))
        prompts = [example["messages"][:-1] for example in task]
        groups = generate_with_tools(model, tokenizer, prompts, num_samples=64, max_new_tokens=16, seed=0)
        scores.append(sum(task.score({}, one.text) for group in groups for one in group) / 192)
    assert scores[1] > scores[0] + 0.04


def test_the_loss_is_dpos_over_the_tokens_that_count(base, tmp_path):
    from nanochat_hf.trainers.preferences import DPOTrainer, PairCollator, PreferenceArguments, PreferenceTrainer
    from nanochat_hf.trainers.stage import chat_arguments, load_model
    from nanochat_hf.trainers.stage_settings import PreferenceConfig

    model, tokenizer = load_model(str(base))
    pair = {"chosen_ids": [1, 2, 3, 4, 5], "chosen_mask": [0, 0, 1, 0, 1]}
    pair |= {"rejected_ids": [1, 2, 9, 8, 7, 6, 5], "rejected_mask": [0, 0, 1, 1, 1, 1, 1]}
    other = {"chosen_ids": [3, 3], "chosen_mask": [0, 1], "rejected_ids": [3, 4], "rejected_mask": [0, 1]}
    from datasets import Dataset

    config = PreferenceConfig(output_dir=str(tmp_path))
    options = {"precompute_ref_log_probs": True, "beta": 0.5, "max_length": None}
    rows = Dataset.from_list([pair, other])
    rows.save_to_disk(str(tmp_path / "rows"))
    trainer = PreferenceTrainer(
        model=model,
        args=PreferenceArguments(**chat_arguments(config, 1), **options),
        data_collator=PairCollator(tokenizer.pad_token_id),
        train_dataset=Dataset.load_from_disk(str(tmp_path / "rows")),
        processing_class=tokenizer,
        hyper=config.hyper(),
    )
    assert isinstance(trainer, DPOTrainer)

    def total(ids, mask):
        logs = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return (logs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])] * torch.tensor(mask[1:])).sum()

    def margins():
        return [
            total(row["chosen_ids"], row["chosen_mask"]) - total(row["rejected_ids"], row["rejected_mask"])
            for row in (pair, other)
        ]

    with torch.no_grad():
        reference = margins()
        batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        expected = torch.stack(
            [-torch.nn.functional.logsigmoid(0.5 * (a - b)) for a, b in zip(margins(), reference, strict=True)]
        ).mean()
        found = trainer.compute_loss(model.train(), batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_only_the_last_answer_of_a_written_pair_counts(base):
    from nanochat_hf.generation.chat_format import ChatFormat
    from nanochat_hf.trainers.preferences import written_pair
    from nanochat_hf.trainers.stage import load_model

    _, tokenizer = load_model(str(base))
    said = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}, {"type": "text", "text": "2."}]
    messages = [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hello! Who are you?"},
        {"role": "user", "content": "What is 1+1?"},
        {"role": "assistant", "content": said},
    ]
    example = {"messages": messages, "rejected": {"role": "assistant", "content": "It is 3."}}
    pair = written_pair(ChatFormat(tokenizer), example, 64)
    texts = {}
    for side in ("chosen", "rejected"):
        kept = [token for token, counts in zip(pair[f"{side}_ids"], pair[f"{side}_mask"], strict=True) if counts]
        texts[side] = tokenizer.decode(kept)
    assert texts == {
        "chosen": "<|python_start|>1+1<|python_end|>2.<|assistant_end|>",
        "rejected": "It is 3.<|assistant_end|>",
    }
    assert written_pair(ChatFormat(tokenizer), example, 8) is None
    assert written_pair(ChatFormat(tokenizer), example | {"rejected": messages[-1]}, 64) is None


def test_pairs_of_samples_are_the_best_and_the_worst():
    from nanochat_hf.generation import Rollout
    from nanochat_hf.trainers.preferences import sampled_pairs

    def answer(*ids):
        return Rollout(list(ids), [token != 9 for token in ids], [], "stop", [7], "")

    answers = [answer(1, 2, 3), answer(1, 9), answer(4, 4, 4, 4), answer(4)]
    (pair,) = sampled_pairs(answers, [1.0, 1.0, 0.0, 0.0])
    assert pair["chosen_ids"] == [7, 1, 9] and pair["chosen_mask"] == [0, 1, 0]
    assert pair["rejected_ids"] == [7, 4, 4, 4, 4] and pair["rejected_mask"] == [0, 1, 1, 1, 1]
    assert sampled_pairs(answers, [0.5] * 4) == []
    both = sampled_pairs(answers, [1.0, 1.0, 0.0, 0.0], most=5)
    assert [(pair["chosen_ids"], pair["rejected_ids"]) for pair in both] == [
        ([7, 1, 9], [7, 4, 4, 4, 4]),
        ([7, 1, 2, 3], [7, 4]),
    ]
    assert len(sampled_pairs([*answers, answers[0]], [1.0, 0.0, 0.0, 0.0, 1.0], most=5)) == 1  # the same answer twice


@pytest.mark.parametrize("lora", [0, 2])
def test_a_resumed_run_ends_with_the_same_bits(lora, base, pairs, tmp_path):
    options = {"tasks": f"preferences={pairs}", "num_iterations": 4, "save_every": 2, "save_total_limit": 5}
    options |= {"lora_rank": lora}
    run_stage("dpo", *arguments(base, tmp_path / "whole", **options))
    (tmp_path / "resumed").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    run_stage("dpo", *arguments(base, tmp_path / "resumed", **options))
    start, expected, found = weights(base), weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert any(not torch.equal(start[key], expected[key]) for key in expected)


@pytest.mark.parametrize("stage", ["dpo", "rl"])
def test_gradient_checkpointing_changes_nothing(stage, base, pairs, tmp_path, monkeypatch):
    options = {"tasks": f"preferences={pairs}", "num_iterations": 2}
    if stage == "rl":
        monkeypatch.setattr(tasks, "load", lambda spec, split: (ShortAnswers(range(8)), 1))
        options = {"tasks": "short", "num_iterations": 2, "prompts_per_step": 2, "num_generations": 4, "eval_every": 0}
    for name, switch in (("plain", "false"), ("again", "true")):
        words = arguments(base, tmp_path / name, **options, gradient_checkpointing=switch)
        if stage == "rl":
            place = words.index("--pairs_per_step")
            del words[place : place + 2]
        run_stage(stage, *words)
    start, plain, again = (weights(folder) for folder in (base, tmp_path / "plain", tmp_path / "again"))
    assert any(not torch.equal(start[key], plain[key]) for key in plain)
    for key in plain:
        torch.testing.assert_close(plain[key], again[key], rtol=0, atol=1e-6)


def test_what_cannot_be_paired_is_said(base, pairs, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="microworld-problems holds no pairs; give preferences=PATH, or --num_samples"):
        run_stage("dpo", *arguments(base, tmp_path / "out", tasks="microworld-problems@4"))
    monkeypatch.setattr(ShortAnswers, "score", lambda *_: 1.0)
    monkeypatch.setattr(tasks, "load", lambda spec, split: (ShortAnswers(range(4)), 1))
    with pytest.raises(UserError, match="the tasks yield no pairs"):
        run_stage("dpo", *arguments(base, tmp_path / "out2", tasks="short", num_samples=2))
