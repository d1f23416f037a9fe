"""Midtraining and SFT: what is trained on, invariances of the whole command, and that nothing becomes NaN."""

import json
import os
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from chat_toy import make_base, run_stage, weights
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nanochat_hf import NanochatHFForCausalLM, settings
from nanochat_hf.settings import UserError
from nanochat_hf.trainers.chat_rows import collate, make_rows, pad_with_empty_rows
from nanochat_hf.trainers.stage import (
    StageConfig,
    initialize_control_head,
    initialize_control_tokens,
    set_default_sampling,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("run") / "base")


@pytest.fixture(scope="module")
def tokenizer(base):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """A file of conversations, some far longer than any row of the tests."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    with path.open("w") as file:
        for _ in range(120):
            numbers = [rng.randrange(10) for _ in range(2)]
            answer = f"{numbers[0]} and {numbers[1]} make {sum(numbers)}. " * rng.choice([1, 1, 2, 30])
            question = f"What is {numbers[0]} + {numbers[1]}? " * rng.choice([1, 1, 1, 40])
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps(turns) + "\n")
    return path


def conversation(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def stage_arguments(base, chats, output, **changes):
    options = {"model": base, "output_dir": output, "tasks": f"conversations={chats}", "max_seq_len": 64}
    options |= {"total_batch_size": 512, "device_batch_size": 8, "num_iterations": 4, "num_threads": 1}
    options |= {"init_lr_frac": 0.1} | changes
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def test_a_control_token_gets_the_embeddings_of_a_word(base, tokenizer):
    model = NanochatHFForCausalLM.from_pretrained(base)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    initialize_control_tokens(model, tokenizer, ["<|assistant_start|>=4 apples?"])
    token, word = tokenizer.convert_tokens_to_ids(["<|assistant_start|>", "?"])
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "embed" in name} and len(changed) > 1
    for name in changed:
        table = model.state_dict()[name]
        assert torch.equal(table[token], before[name][word])
        assert torch.equal(table[torch.arange(len(table)) != token], before[name][torch.arange(len(table)) != token])
    for pair in ("apples=?", "<|assistant_start|>"):
        with pytest.raises(UserError, match="initialize_control_tokens has"):
            initialize_control_tokens(model, tokenizer, [pair])


def test_new_control_tokens_begin_as_likely_as_an_average_token(base, tokenizer):
    model = NanochatHFForCausalLM.from_pretrained(base)
    unseen = sorted(set(tokenizer.all_special_ids) - {tokenizer.bos_token_id})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.lm_head.weight[unseen] = -1.0  # as after pretraining, which never sees them
    initialize_control_head(model, tokenizer)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if name != "lm_head.weight")
    kept = [token for token in range(len(tokenizer)) if token not in unseen]
    assert torch.equal(after["lm_head.weight"][kept], before["lm_head.weight"][kept])
    expected = before["lm_head.weight"][kept].mean(dim=0)
    torch.testing.assert_close(after["lm_head.weight"][unseen], expected.expand(len(unseen), -1))


def test_default_sampling_travels_with_the_checkpoint_to_chats_and_servers(base, tmp_path):
    from nanochat_hf.generation.sampling import default_sampling
    from nanochat_hf.serving.engine import default_settings

    model = NanochatHFForCausalLM.from_pretrained(base)
    assert default_sampling(model) == settings.CHAT_SAMPLING
    set_default_sampling(model, ["temperature=0.3", "top_p=0.9"])
    model.save_pretrained(tmp_path)
    loaded = NanochatHFForCausalLM.from_pretrained(tmp_path)
    assert default_sampling(loaded) == {"temperature": 0.3, "top_k": 0, "top_p": 0.9, "min_p": None}
    served = default_settings(loaded)
    assert (served.temperature, served.top_p, served.min_p) == (0.3, 0.9, None)
    for pair, said in (("heat=1", "heat=1"), ("top_p=2", "top_p"), ("temperature=0", "top_k=1")):
        with pytest.raises(UserError, match=said):
            set_default_sampling(model, [pair])


def test_sft_trains_on_what_the_assistant_says_and_midtraining_on_everything(tokenizer):
    tasks = [([conversation("Who are you?", "I am nanochat.")], 1)]
    sft = make_rows(tasks, tokenizer, 64, train_on="assistant")
    said = sft["labels"][sft["labels"] != -100]
    assert tokenizer.decode(said) == "I am nanochat.<|assistant_end|>"
    mid = make_rows(tasks, tokenizer, 64, train_on="all")
    length = int((mid["labels"][0] != -100).sum())
    assert (mid["labels"][0, :length] == mid["input_ids"][0, :length]).all()
    assert length < 64 and (mid["input_ids"][0, length:] == tokenizer.pad_token_id).all()
    assert (sft["input_ids"] == mid["input_ids"]).all()


def test_every_conversation_is_used_as_often_as_asked(tokenizer):
    tasks = [([conversation(f"{n}?", f"{n}.") for n in range(30)], 2), ([conversation("Hi", "Ho")], 3)]
    rows = make_rows(tasks, tokenizer, 50, train_on="assistant", epochs=2)
    end = tokenizer.convert_tokens_to_ids("<|assistant_end|>")
    assert int((rows["labels"] == end).sum()) == 2 * (30 * 2 + 3)


@hypothesis_settings(max_examples=25, deadline=None)
@given(row_length=st.integers(4, 80), lengths=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90)), min_size=1))
def test_rows_of_any_length_hold_something_to_learn_or_are_refused(tokenizer, row_length, lengths):
    tasks = [([conversation("a" * question, "b" * answer) for question, answer in lengths], 1)]
    try:
        rows = make_rows(tasks, tokenizer, row_length, train_on="assistant")
    except UserError as error:
        assert "nothing to train on" in str(error)
        return
    assert rows["input_ids"].shape[1] == row_length
    assert ((rows["labels"][:, 1:] != -100).sum(axis=1) > 0).all()


def test_endless_passes_end_where_no_answer_fits(tokenizer):
    with pytest.raises(UserError, match="no answer begins within the row's 8 tokens"):
        make_rows([([conversation("a" * 50, "b")], 1)], tokenizer, 8, train_on="assistant", epochs=None, num_rows=4)


@pytest.mark.parametrize("stage", ["midtrain", "sft"])
def test_without_packing_the_loss_is_that_of_each_conversation_alone(stage, base, tmp_path, monkeypatch):
    """Per trained token. Packed conversations see the ones before them in their row, so their loss is another."""
    from nanochat_hf.generation.chat_format import ChatFormat
    from nanochat_hf.trainers import supervised
    from nanochat_hf.trainers.stage import load_model

    model, words = load_model(str(base))
    chats = [[("user", f"What is {n} + 3? " * (1 + n % 3)), ("assistant", f"It is {n + 3}.")] for n in range(24)]
    chats = [[{"role": role, "content": text} for role, text in turns] for turns in chats]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(turns) + "\n" for turns in chats))
    nats, count = 0.0, 0
    for turns in chats:
        ids, mask = ChatFormat(words).conversation(turns)
        mask = torch.tensor(mask[1:] if stage == "sft" else [1] * (len(ids) - 1))
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        nats -= float((logs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])] * mask).sum())
        count += int(mask.sum())
    widths, losses = [], {}
    monkeypatch.setattr(
        supervised,
        "collate",
        lambda rows, shorten: widths.append((collated := collate(rows, shorten))["input_ids"].shape[1]) or collated,
    )
    for packing in ("none", "best_fit"):
        options = {"max_seq_len": 200, "total_batch_size": 800, "device_batch_size": 4, "num_iterations": 1}
        options |= {"packing": packing, "val_tasks": f"conversations={tmp_path}/chats.jsonl", "init_lr_frac": 0.0}
        run_stage(stage, *stage_arguments(base, tmp_path / "chats.jsonl", tmp_path / packing, **options))
        run = json.loads((tmp_path / packing / "run.json").read_text())
        losses[packing] = next(value for name, value in run["metrics"].items() if name.startswith("val_loss"))
        assert (max(widths) < 200) == (packing == "none"), "only rows of one conversation are shortened"
    assert losses["none"] == pytest.approx(nats / count, abs=1e-5)
    assert losses["best_fit"] != pytest.approx(nats / count, abs=1e-5)


def test_collate_shifts_by_one_and_empty_rows_only_fill_up():
    columns = {"input_ids": np.array([[1, 2, 3, 4]] * 3), "labels": np.array([[-100, 2, 3, -100]] * 3)}
    padded = pad_with_empty_rows(columns, 4)
    batch = collate([{name: values[row] for name, values in padded.items()} for row in range(4)])
    assert batch["input_ids"][0].tolist() == [1, 2, 3]
    assert batch["shift_labels"].tolist() == [[2, 3, -100]] * 3 + [[-100, -100, -100]]


@pytest.mark.parametrize(("last", "width"), [(64, 64), (65, 128), (150, 192), (None, 64)])
def test_shortened_batches_keep_every_label(last, width):
    row = {"input_ids": np.arange(200), "labels": np.full(200, -100)}
    if last is not None:
        row["labels"][[3, last]] = row["input_ids"][[3, last]]
    batch = collate([row, {**row, "labels": np.full(200, -100)}], shorten=True)
    assert batch["input_ids"].shape == batch["shift_labels"].shape == (2, width)
    targets = batch["shift_labels"][0]
    assert targets[targets >= 0].tolist() == ([3, last] if last is not None else [])


@pytest.mark.parametrize("stage", ["midtrain", "sft"])
def test_a_stage_learns_and_leaves_a_checkpoint(stage, base, chats, tmp_path):
    arguments = stage_arguments(base, chats, tmp_path / "out", num_iterations=12, eval_every=6)
    run_stage(stage, *arguments, "--val_tasks", f"conversations={chats}@20")
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    name = {"midtrain": "val_loss_all_tokens", "sft": "val_loss_assistant_tokens"}[stage]
    values = [row[name] for row in run["history"] if name in row]
    assert len(values) >= 3 and values[-1] < 0.9 * values[0]
    assert run["metrics"][name] == values[-1] and run["stage"] == stage
    assert run["metrics"][name.replace("loss", "bpb")] > 0
    before, after = weights(base), weights(tmp_path / "out")
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert not list((tmp_path / "out").glob("rows-*"))


@pytest.mark.parametrize("stage", ["midtrain", "sft"])
def test_bfloat16_reaches_training_and_evaluation(stage, base, chats, tmp_path, monkeypatch):
    from nanochat_hf.model.modeling_nanochat_hf import NanochatHFMLP

    seen, forward = [], NanochatHFMLP.forward

    def watched(self, hidden_states):
        output = forward(self, hidden_states)
        seen.append((self.training, output.dtype))
        return output

    monkeypatch.setattr(NanochatHFMLP, "forward", watched)
    scores = {}
    for dtype in ("float32", "bfloat16"):
        seen.clear()
        arguments = stage_arguments(base, chats, tmp_path / dtype, num_iterations=2, dtype=dtype)
        run_stage(stage, *arguments, "--val_tasks", f"conversations={chats}@20")
        assert set(seen) == {(True, getattr(torch, dtype)), (False, getattr(torch, dtype))}
        assert {tensor.dtype for tensor in weights(tmp_path / dtype).values()} == {torch.float32}
        scores[dtype] = json.loads((tmp_path / dtype / "run.json").read_text())["metrics"]
    for name, score in scores["float32"].items():
        assert scores["bfloat16"][name] == pytest.approx(score, rel=0.02) and scores["bfloat16"][name] != score


def test_one_big_micro_batch_equals_eight_small_ones(base, chats, tmp_path):
    for size in (8, 1):
        arguments = stage_arguments(base, chats, tmp_path / str(size), device_batch_size=size)
        run_stage("sft", *arguments)
    losses = [
        [row["loss"] for row in json.loads((tmp_path / name / "run.json").read_text())["history"] if "loss" in row]
        for name in ("8", "1")
    ]
    assert len(losses[0]) == 4
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_a_resumed_run_ends_with_the_same_bits(base, chats, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_stage("sft", *stage_arguments(base, chats, whole, save_every=2, save_total_limit=5, num_iterations=5))
    resumed.mkdir()
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    started = json.loads((whole / "started.json").read_text())
    (resumed / "started.json").write_text(json.dumps(started))
    arguments = stage_arguments(base, chats, resumed, save_every=2, save_total_limit=5, num_iterations=5)
    with pytest.raises(UserError, match="another init_lr_frac"):
        run_stage("sft", *arguments, "--init_lr_frac", "0.2")
    run_stage("sft", *arguments)
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    history = json.loads((resumed / "run.json").read_text())["history"]
    assert [row["step"] for row in history if "loss" in row] == [1, 2, 3, 4, 5]


def test_sigterm_saves_and_ends_with_143_and_the_same_command_continues(base, chats, tmp_path, monkeypatch, capsys):
    from nanochat_hf.trainers.callbacks import TrainingProgress

    def interrupt(self, args, state, control, **_):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    run_stage("sft", *stage_arguments(base, chats, tmp_path / "whole", num_iterations=4))
    arguments = stage_arguments(base, chats, tmp_path / "out", num_iterations=4)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "on_step_end", interrupt)
        with pytest.raises(SystemExit) as stopped:
            run_stage("sft", *arguments)
    assert stopped.value.code == 143
    assert "stopped by SIGTERM after step 2" in capsys.readouterr().err
    assert (tmp_path / "out" / "checkpoint-2").exists() and not (tmp_path / "out" / "run.json").exists()
    run_stage("sft", *arguments)
    assert "resuming from" in capsys.readouterr().out
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.parametrize("length, device_batch_size", [(24, 1), (40, 3)])
def test_short_contexts_never_make_nan(base, chats, tmp_path, length, device_batch_size):
    changes = {"max_seq_len": length, "device_batch_size": device_batch_size, "total_batch_size": 6 * length}
    run_stage("sft", *stage_arguments(base, chats, tmp_path / "out", num_iterations=6, **changes))
    losses = [
        row["loss"] for row in json.loads((tmp_path / "out" / "run.json").read_text())["history"] if "loss" in row
    ]
    assert np.isfinite(losses).all() and max(losses) > 0
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "out").values())


def one_row_trainer(base, tokenizer, folder, row):
    from datasets import Dataset
    from trl import SFTConfig

    from nanochat_hf.trainers.stage import chat_arguments, load_model
    from nanochat_hf.trainers.supervised import PackedRowsTrainer

    model, _ = load_model(base)
    config = StageConfig(output_dir=str(folder))
    return PackedRowsTrainer(
        model=model,
        args=SFTConfig(**chat_arguments(config, 1), dataset_kwargs={"skip_prepare_dataset": True}, max_length=None),
        train_dataset=Dataset.from_list([row]).with_format("numpy"),
        eval_dataset=Dataset.from_list([row]).with_format("numpy"),
        processing_class=tokenizer,
        hyper=config.hyper(),
        schedule=config.schedule(1),
        mask_name="assistant_tokens",
    )


def test_a_batch_without_any_label_has_loss_zero_and_finite_gradients(base, tokenizer, tmp_path):
    row = {"input_ids": np.arange(1, 10), "labels": np.full(9, -100)}
    trainer = one_row_trainer(base, tokenizer, tmp_path, row)
    loss = trainer.compute_loss(trainer.model, collate([row]), num_items_in_batch=torch.tensor(0))
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())


@pytest.mark.parametrize("window", [None, 5])
def test_the_model_gets_no_mask_and_its_own_loss_is_that_of_trl(window, base, tokenizer, tmp_path, monkeypatch):
    """Up to the order of additions: in the loss, and with windows in attention."""
    from nanochat_hf.model.modeling_nanochat_hf import NanochatHFModel

    labels = np.arange(1, 34)
    labels[5:20] = -100
    row = {"input_ids": np.arange(1, 34), "labels": labels}
    trainer = one_row_trainer(base, tokenizer, tmp_path, row)
    config = trainer.model.config
    kind = "full_attention" if window is None else "sliding_attention"
    config.layer_types, config.sliding_window = [kind] * config.num_hidden_layers, window
    for layer in trainer.model.model.layers:
        layer.self_attn.layer_type, layer.self_attn.sliding_window = kind, window
    batch, model = collate([row]), trainer.model.train()
    expected = -model(**batch, fused_lm_head=True).log_probs.sum() / 17
    expected.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()

    seen, forward = [], NanochatHFModel.forward
    monkeypatch.setattr(
        NanochatHFModel,
        "forward",
        lambda self, *given, **options: seen.append(options.get("attention_mask")) or forward(self, *given, **options),
    )
    loss = trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(17))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    loss.backward()
    for own, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, own, rtol=1e-3, atol=1e-6)
    trainer.evaluate()
    assert seen == [None, None]


def test_learning_rates_fall_to_the_end_and_never_rise_after_the_warmup():
    config = StageConfig(warmup_ratio=0.1, warmdown_ratio=0.5)
    schedule = config.schedule(100)
    factors = [schedule.lr_factor(step) for step in range(100)]
    assert factors[0] == 0.1 and factors[10] == factors[50] == 1.0 and factors[75] == 0.5
    assert all(later <= earlier for earlier, later in zip(factors[10:], factors[11:], strict=False))
    assert config.hyper()["matrix_lr"] == 0.02 and StageConfig(init_lr_frac=0.5).hyper()["matrix_lr"] == 0.01


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"max_seq_len": 512}, "max_seq_len 512"),
        ({"tasks": "nonsense"}, "no task 'nonsense'"),
        ({"model": "nowhere"}, "nowhere"),
    ],
)
def test_mistakes_are_named(base, chats, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        run_stage("sft", *stage_arguments(base, chats, tmp_path / "out", **changes))
