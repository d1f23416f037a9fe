"""RL: the loss against a reference written out by hand, what is trained, reward that rises, exact resuming."""

import json
import shutil
import zlib

import pytest
import torch
from chat_toy import ShortAnswers, make_base, run_stage, weights

from nanochat_hf import tasks
from nanochat_hf.settings import UserError
from nanochat_hf.tokenizer import render_prompt
from nanochat_hf.trainers.stage import load_model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("run") / "base", sequence_length=64)


@pytest.fixture(autouse=True)
def toy_task(monkeypatch):
    monkeypatch.setattr(tasks, "load", lambda spec, split: (ShortAnswers(range(24)), 1))


def stage_arguments(base, output, **changes):
    options = {"model": base, "output_dir": output, "tasks": "short", "val_tasks": "short", "val_samples": 2}
    options |= {"prompts_per_step": 4, "num_generations": 4, "max_new_tokens": 12, "num_iterations": 4}
    options |= {"device_batch_size": 8, "eval_every": 100, "save_every": 0, "init_lr_frac": 1.0, "top_k": 0} | changes
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def make_trainer(base, output, **changes):
    from nanochat_hf.trainers.grpo import RolloutConfig, make_trainer

    config = RolloutConfig(
        str(base), str(output), ["short"], val_tasks=["short"], eval_every=0, save_every=0, **changes
    )
    return make_trainer(config, *load_model(str(base)))


def rollouts_with_a_tool(tokenizer):
    """Four finished rollouts as TRL lays them out: prompts padded left, answers right, a forced tool result inside."""
    prompts = [render_prompt(tokenizer, ShortAnswers([row])[0]["messages"][:-1]) for row in (0, 0, 2, 2)]
    answers = [[70, 71, 72, 73, 74], [80, 81], [90, 91, 92], [95, 96, 97, 98]]
    forced = [[0, 0, 1, 1, 0], [0, 0], [0, 1, 0], [0, 0, 0, 0]]
    P, C, pad = max(map(len, prompts)), max(map(len, answers)), tokenizer.pad_token_id

    def right(rows, fill):
        return torch.tensor([row + [fill] * (C - len(row)) for row in rows])

    batch = {
        "prompt_ids": torch.tensor([[pad] * (P - len(row)) + row for row in prompts]),
        "prompt_mask": torch.tensor([[0] * (P - len(row)) + [1] * len(row) for row in prompts]),
        "completion_ids": right(answers, pad),
        "completion_mask": right([[1] * len(row) for row in answers], 0),
        "tool_mask": 1 - right(forced, 0),
        "advantages": torch.tensor([0.75, 0.0, -0.25, 0.5]),
    }
    batch["num_items_in_batch"] = (batch["completion_mask"] * batch["tool_mask"]).sum()
    return batch, prompts, answers, forced


def test_loss_and_gradient_are_reinforce_over_the_tokens_the_model_chose(base, tmp_path):
    trainer = make_trainer(base, tmp_path, prompts_per_step=2, num_generations=2, max_new_tokens=6)
    trainer.current_gradient_accumulation_steps = 1
    batch, prompts, answers, forced = rollouts_with_a_tool(trainer.processing_class)
    model = trainer.model.train()
    trainer.compute_loss(model, batch).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    model.zero_grad()
    total = 0.0
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]
        total = total - batch["advantages"][row] * (chosen * (1 - torch.tensor(forced[row]))).sum()
    (total / (5 + 2 + 3 + 4 - 3)).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-7)


def test_rollouts_repeat_for_a_seed_and_differ_in_their_first_token(base, tmp_path):
    from nanochat_hf.trainers.grpo import _rollout

    trainer = make_trainer(base, tmp_path, prompts_per_step=2, num_generations=8, max_new_tokens=6, top_k=0)
    rows = trainer.train_dataset
    prompts = [rows[index]["prompt"] for index in (0, 1) for _ in range(8)]
    first, again = _rollout(prompts, trainer), _rollout(prompts, trainer)
    assert first == again
    trainer.state.global_step = 1
    assert _rollout(prompts, trainer)["completion_ids"] != first["completion_ids"]
    assert len({ids[0] for ids in first["completion_ids"][:8]}) > 1
    assert all(
        len(ids) == len(mask) <= 6 for ids, mask in zip(first["completion_ids"], first["env_mask"], strict=True)
    )
    with pytest.raises(UserError, match="are on several processes"):
        _rollout(prompts[1:] + prompts[:1], trainer)


def test_prompts_are_laid_out_once_a_pass_and_too_long_ones_left_out(base):
    from nanochat_hf.trainers.grpo import prompt_order

    _, tokenizer = load_model(str(base))
    task = ShortAnswers(range(9))
    lengths = sorted({len(render_prompt(tokenizer, example["messages"][:-1])) for example in task})
    rows, too_long = prompt_order([(task, 2)], tokenizer, lengths[1], 24, seed=3)
    assert too_long == 3 and len(rows) == 24
    assert sorted(row["index"] for row in rows[:12]) == sorted([0, 1, 3, 4, 6, 7] * 2)
    assert rows[:12] != rows[12:]
    assert prompt_order([(task, 2)], tokenizer, lengths[1], 24, seed=3)[0] == rows
    with pytest.raises(UserError, match="no prompt"):
        prompt_order([(task, 1)], tokenizer, lengths[0] - 1, None, seed=3)


def test_reward_rises_and_held_out_problems_are_measured(base, tmp_path):
    run_stage("rl", *stage_arguments(base, tmp_path / "out", num_iterations=28, prompts_per_step=8))
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    rewards = [row["reward"] for row in run["history"] if "reward" in row]
    assert len(rewards) == 28
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.06
    passed = [row["val_pass@1/short-answers"] for row in run["history"] if "val_pass@1/short-answers" in row]
    assert len(passed) == 2 and passed[1] > passed[0]
    assert run["metrics"]["val_pass@2/short-answers"] >= run["metrics"]["val_pass@1/short-answers"]


def test_bfloat16_reaches_rollouts_measurements_and_the_loss(base, tmp_path, monkeypatch):
    """Of fp32 weights, which are what the optimizer updates and what is saved."""
    from nanochat_hf.generation.fast_decoder import DecoderWeights
    from nanochat_hf.trainers.grpo import LeftAligned

    prepared, lost = [], []
    prepare, score = DecoderWeights.__init__, LeftAligned.__call__

    def watched_score(self, *given, **options):
        seen = self.model.model.layers[0].mlp.register_forward_hook(lambda _, __, output: lost.append(output.dtype))
        outputs = score(self, *given, **options)
        seen.remove()
        assert outputs.log_probs.dtype == torch.float32
        return outputs

    monkeypatch.setattr(
        DecoderWeights, "__init__", lambda self, *given: prepared.append(given[1]) or prepare(self, *given)
    )
    monkeypatch.setattr(LeftAligned, "__call__", watched_score)
    steps = {"num_iterations": 2, "eval_every": 1}
    run_stage("rl", *stage_arguments(base, tmp_path / "out", dtype="bfloat16", **steps))
    assert prepared == [torch.bfloat16] * 5  # two rollouts, and pass@k before, between and after
    assert set(lost) == {torch.bfloat16}
    found, start = weights(tmp_path / "out"), weights(base)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert any(not torch.equal(start[key], found[key]) for key in start)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["config"]["dtype"] == "bfloat16"
    with pytest.raises(UserError, match="--dtype half is not known; use auto, bfloat16, float32"):
        run_stage("rl", *stage_arguments(base, tmp_path / "other", dtype="half"))


def test_a_resumed_run_ends_with_the_same_bits(base, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_stage("rl", *stage_arguments(base, whole, save_every=2, save_total_limit=5))
    resumed.mkdir()
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    run_stage("rl", *stage_arguments(base, resumed, save_every=2, save_total_limit=5))
    start, expected, found = weights(base), weights(whole), weights(resumed)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert any(not torch.equal(start[key], expected[key]) for key in expected)


# ---- rewards, losses, collapse, the best policy -------------------------------------


def history(folder):
    return json.loads((folder / "run.json").read_text())["history"]


@pytest.fixture
def own_rewards(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def brief(prompts, completions, solution, example, log_metric, **_):\n"
        "    assert prompts[0][-1]['role'] == 'user' and solution[0] == 'Yes.' and 'messages' in example[0]\n"
        "    log_metric('seen', float(len(prompts)))\n"
        "    return [1.0 - len(completion[0]['content']) / 20 for completion in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_rewards_of_ones_own_add_up_with_their_weights(base, tmp_path, own_rewards):
    rewards = {"reward": ["task*0.5", "my_rewards:brief*2"], "log_completions": "true"}
    words = stage_arguments(base, tmp_path / "out", num_iterations=2)
    run_stage("rl", *words, "--reward", *rewards["reward"], "--log_completions")
    rows = [row for row in history(tmp_path / "out") if "reward" in row]
    for row in rows:
        total = 0.5 * row["rewards/reward/mean"] + 2 * row["rewards/brief/mean"]
        assert row["reward"] == pytest.approx(total, abs=1e-5) and row["seen"] == 16
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "out" / "completions" / "completions_00001.parquet")
    assert {"prompt", "completion", "reward", "brief", "advantage"} <= set(table.column_names) and len(table) == 16


def test_trls_own_reward_functions_take_our_rows():
    from trl.rewards import think_format_reward  # noqa: F401  the one that is named below

    from nanochat_hf.trainers.rewards import read_rewards

    [reward] = read_rewards(["trl.rewards:think_format_reward*0.1"], [ShortAnswers(range(3))])
    assert (reward.name, reward.weight, reward.function.__name__) == (
        "think_format_reward",
        0.1,
        "think_format_reward",
    )
    prompt = json.dumps([{"role": "user", "content": "Hello!"}])
    columns = {"prompts": [prompt] * 2, "completions": ["", ""], "task": [0, 0], "index": [0, 1]}
    found = reward.function(**columns, answer=["<think>\nWell.\n</think>\nYes.", "Yes."], completion_ids=[[1], [2]])
    assert found == [1.0, 0.0]


@pytest.mark.parametrize(
    "reward, words",
    [
        ("score", "--reward score is unknown"),
        ("task*much", "the weight much is no number"),
        ("task*nan", "the weight nan is not finite"),
        ("no_such_module:score", "cannot import the module no_such_module"),
        ("json:nothing", "has no function or class nothing"),
    ],
)
def test_wrong_rewards_are_named(reward, words, base, tmp_path):
    with pytest.raises(UserError, match=words):
        run_stage("rl", *stage_arguments(base, tmp_path / "out", reward=reward))


@pytest.mark.parametrize(
    "found, words",
    [
        ([1.0], "returned 1 values, not a list of 2 numbers, one per answer"),
        (None, "returned None, not a list of 2 numbers"),
        (1.0, "returned 1.0, not a list of 2 numbers"),
        (["1", "0"], "returned '1' for an answer; return a finite number, or None"),
        ([0.0, float("-inf")], "returned -inf for an answer"),
        ([{"score": 1}, None], "for an answer; return a finite number"),
    ],
)
def test_what_is_no_reward_is_refused(found, words, tmp_path, monkeypatch):
    from nanochat_hf.trainers.rewards import read_rewards

    rewards = read_module(tmp_path, monkeypatch, f"def score(prompts, completions, **_):\n    return {found!r}\n")
    [reward] = read_rewards([f"{rewards}:score"], [ShortAnswers(range(3))])
    with pytest.raises(UserError, match=f"--reward {rewards}:score .*{words}"):
        reward.function(prompts=["[]"] * 2, completions=["", ""], task=[0, 0], index=[0, 1], answer=["a", "b"])


def read_module(folder, monkeypatch, text):
    """Writes a module for `--reward`; returns its name, another one for each text."""
    text = text.replace("inf", "float('inf')")
    name = f"rewards_{zlib.crc32(text.encode())}"
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    return name


def test_a_step_without_any_reward_ends_in_finite_weights(base, tmp_path, monkeypatch):
    rewards = read_module(
        tmp_path, monkeypatch, "def score(completions, **_):\n    return [None] * len(completions)\n"
    )
    words = stage_arguments(base, tmp_path / "out", num_iterations=2, reward=f"{rewards}:score", eval_every=0)
    run_stage("rl", *words)
    assert all(value.isfinite().all() for value in weights(tmp_path / "out").values())


@pytest.mark.parametrize("score", [None, "1", float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_refused(score, base, tmp_path, monkeypatch):
    monkeypatch.setattr(ShortAnswers, "score", lambda *_: score)
    for eval_every in (0, 100):
        with pytest.raises(UserError, match="score of the task .* returned .*; return a number"):
            run_stage("rl", *stage_arguments(base, tmp_path / f"out{eval_every}", eval_every=eval_every))


def test_math_verify_scores_by_value_or_is_asked_for(monkeypatch):
    import importlib.util

    from nanochat_hf.trainers.rewards import check_rewards, read_rewards

    if importlib.util.find_spec("math_verify") is None:
        with pytest.raises(UserError, match="--reward math-verify needs its package: pip install math-verify"):
            check_rewards(["math-verify"])
        return
    [reward] = read_rewards(["math-verify"], [[{"messages": [], "answer": "0.5"}]])
    columns = {"prompts": ["[]"] * 2, "completions": ["", ""], "task": [0, 0], "index": [0, 0]}
    assert reward.function(**columns, answer=[r"$\frac{1}{2}$", "$3$"], completion_ids=[[], []]) == [1.0, 0.0]


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "bnpo", "cispo", "luspo"])
def test_other_losses_of_trl_keep_their_divisor(loss_type, base, tmp_path):
    """Against TRL's loss on all rows, also those whose group scored the same."""
    from trl import GRPOTrainer

    trainer = make_trainer(
        base, tmp_path, prompts_per_step=2, num_generations=2, max_new_tokens=6, loss_type=loss_type
    )
    trainer.current_gradient_accumulation_steps = 1
    batch, *_ = rollouts_with_a_tool(trainer.processing_class)
    from nanochat_hf.trainers.grpo import LeftAligned

    model = trainer.model.train()
    with torch.no_grad():
        found = trainer.compute_loss(model, batch)
        expected = GRPOTrainer.compute_loss(trainer, LeftAligned(model), batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_the_best_policy_is_kept(base, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    from nanochat_hf.trainers.grpo import PassAtK

    scores = iter([0.2, 0.5, 0.4, 0.5])  # before the first step, and after each of the three
    seen = {}

    def measure(self, state):
        self.latest = {"val_pass@1/short-answers": next(scores)}
        seen[state.global_step] = {k: v.clone() for k, v in self.trainer.model.state_dict().items()}
        self.keep_best(state)

    monkeypatch.setattr(PassAtK, "measure", measure)
    run_stage("rl", *stage_arguments(base, tmp_path / "out", num_iterations=3, eval_every=1))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["best"] == {"step": 1, "val_pass@1": 0.5}
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "best").state_dict()
    assert all(torch.equal(kept[name], seen[1][name]) for name in kept)
    assert any(not torch.equal(kept[name], seen[3][name]) for name in kept)


def guarded(rows):
    from types import SimpleNamespace

    from nanochat_hf.trainers.grpo import CollapseGuard

    guard, state = CollapseGuard(patience=3), SimpleNamespace(is_world_process_zero=True)
    usual = {"reward": 0.3, "entropy": 0.5, "completions/mean_length": 40.0, "completions/clipped_ratio": 0.0}
    for row in rows:
        guard.on_log(None, state, None, logs=usual | {"frac_reward_zero_std": 0.2} | row)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"frac_reward_zero_std": 1.0, "reward": 0.0}, "no answer is right: take easier tasks"),
        ({"frac_reward_zero_std": 1.0, "reward": 1.0}, "every answer is right: take harder tasks"),
        ({"frac_reward_zero_std": 1.0}, "too alike: raise --temperature"),
        ({"entropy": 0.01}, "the samples are alike; lower --init_lr_frac"),
        ({"completions/clipped_ratio": 0.9}, "without an end; raise it"),
        ({"completions/mean_length": 4.0}, "less than a quarter of their first length"),
    ],
)
def test_a_collapse_is_named_with_what_to_change(change, words, capsys):
    guarded([{}] * 10)
    assert not capsys.readouterr().err
    guarded([{}] * 5 + [change] * 2)
    assert not capsys.readouterr().err
    guarded([{}] * 5 + [change] * 3)
    said = capsys.readouterr().err
    assert words in said and said.count("warning") == 1
    guarded([{}] * 5 + [change | {"reward": 0.9, "frac_reward_zero_std": 0.2}] * 9)
    assert not capsys.readouterr().err, "short and sure is right where the reward has risen"


class CodeAnswers(ShortAnswers):
    name, runs_code = "code-answers", True

    def score(self, example, completion):
        raise AssertionError("a program was to be run")


def test_where_no_program_can_be_isolated_rl_goes_on_without_code_and_says_so(base, tmp_path, monkeypatch, capsys):
    from nanochat_hf.tools import sandbox

    kinds = {"short": ShortAnswers, "code": CodeAnswers}
    monkeypatch.setattr(tasks, "load", lambda spec, split: (kinds[spec](range(24)), 1))
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    sandbox.why_unavailable.cache_clear()
    arguments = stage_arguments(base, tmp_path / "rl", num_iterations=1, allow_code_execution="true")
    arguments.insert(arguments.index("--tasks") + 2, "code")
    try:
        run_stage("rl", *arguments)
        assert (tmp_path / "rl" / "run.json").exists()
        said = capsys.readouterr().err
        assert "rl goes on without code-answers" in said and "darwin" in said
        with pytest.raises(UserError, match="code-answers cannot be scored: the code sandbox cannot isolate"):
            run_stage("rl", *stage_arguments(base, tmp_path / "only", tasks="code", allow_code_execution="true"))
    finally:
        sandbox.why_unavailable.cache_clear()
