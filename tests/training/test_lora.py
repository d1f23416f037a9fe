"""LoRA in the chat stages: what is trained, what is written, resuming; on our models and on others."""

import json
import shutil

import pytest
import torch
from chat_toy import make_base, run_stage, weights
from test_any_model import PLAIN_TEMPLATE, arguments, chats, own_model  # noqa: F401
from transformers import AutoModelForCausalLM

from nanochat_hf.settings import UserError


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("run") / "base")


@pytest.mark.parametrize("kind", ["ours", "llama"])
def test_lora_learns_and_is_merged(kind, base, chats, tmp_path):  # noqa: F811
    start = base if kind == "ours" else own_model(tmp_path / "base", PLAIN_TEMPLATE)
    lora = {"lora_rank": 4, "learning_rate": 5e-2, "num_iterations": 40}
    run_stage("sft", *arguments(start, chats, tmp_path / "out", val_tasks="[]", **lora))
    history = json.loads((tmp_path / "out" / "run.json").read_text())["history"]
    losses = [row["loss"] for row in history if "loss" in row]
    assert len(losses) == 40 and sum(losses[-5:]) / 5 < sum(losses[:2]) / 2 - 0.2
    before, after = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (start, tmp_path / "out"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("layers." in name for name in changed)
    for name in changed:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 4
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()


def test_the_adapter_alone_gives_the_same_model(base, chats, tmp_path):  # noqa: F811
    from peft import PeftModel

    run_stage("sft", *arguments(base, chats, tmp_path / "out", lora_rank=2, lora_targets="q_proj", num_iterations=4))
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = PeftModel.from_pretrained(model, tmp_path / "out" / "adapter").merge_and_unload().state_dict()
    merged = weights(tmp_path / "out")
    changed = {name for name in merged if not torch.equal(merged[name], weights(base)[name])}
    assert changed and all(name.endswith("q_proj.weight") for name in changed)
    for name in merged:
        torch.testing.assert_close(adapted[name], merged[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "targets, words",
    [
        (
            ["q_proj", "v_prj"],
            "--lora_targets v_prj is the name of no matrix of this model; take all-linear, or some of",
        ),
        (["mlp"], "--lora_targets mlp is the name of no matrix"),
        (["lm_head"], "--lora_targets lm_head is the head, which LoRA does not train here"),
    ],
)
def test_a_target_that_would_not_be_trained_is_refused(targets, words, base, chats, tmp_path):  # noqa: F811
    options = arguments(base, chats, tmp_path / "out", lora_rank=2, num_iterations=4)
    with pytest.raises(UserError, match=words):
        run_stage("sft", *options, "--lora_targets", *targets)


def test_a_resumed_run_ends_with_the_same_bits(base, chats, tmp_path):  # noqa: F811
    options = {"lora_rank": 2, "num_iterations": 6, "save_every": 3, "save_total_limit": 5, "val_tasks": "[]"}
    run_stage("sft", *arguments(base, chats, tmp_path / "whole", **options))
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    assert (checkpoint / "adapter_model.safetensors").exists() and not (checkpoint / "model.safetensors").exists()
    (tmp_path / "resumed").mkdir()
    shutil.copytree(checkpoint, tmp_path / "resumed" / "checkpoint-3")
    run_stage("sft", *arguments(base, chats, tmp_path / "resumed", **options))
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    history = json.loads((tmp_path / "resumed" / "run.json").read_text())["history"]
    assert history[-1]["step"] == 6


def test_lora_needs_a_model_that_can_chat(chats, tmp_path):  # noqa: F811
    base = own_model(tmp_path / "base")
    with pytest.raises(UserError, match="LoRA does not train the embeddings of new control tokens"):
        run_stage("sft", *arguments(base, chats, tmp_path / "out", lora_rank=4))


@pytest.mark.parametrize("kind", ["ours", "llama"])
def test_a_merged_copy_says_the_same_by_the_fast_decoder(kind, base, tmp_path):
    from peft import LoraConfig, get_peft_model

    from nanochat_hf.generation import generate_with_tools, load_checkpoint
    from nanochat_hf.generation.fast_decoder import FastDecoder
    from nanochat_hf.trainers.lora import merged_for_decoding

    start = base if kind == "ours" else own_model(tmp_path / "base", PLAIN_TEMPLATE)
    model, words = load_checkpoint(start, device="cpu")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"]))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in adapted.named_parameters():
            if "lora_B" in name:
                tensor.normal_(std=0.3)
    merged = merged_for_decoding(adapted)
    assert type(merged) is type(model) and FastDecoder.supports(merged) == (kind == "ours")
    kept = adapted.get_base_model().state_dict()
    for name, tensor in before.items():
        wrapped = name.replace("_proj.weight", "_proj.base_layer.weight")
        assert torch.equal(kept.get(name, kept.get(wrapped)), tensor), "the model that is trained has not changed"
    assert merged.get_input_embeddings().weight is adapted.get_input_embeddings().weight
    prompts = [words.encode(text, add_special_tokens=False) for text in ("What is 12*3?", "Hello!", "Anna has 4")]

    def said(model, **sampling):
        groups = generate_with_tools(
            model, words, prompts, num_samples=4, seed=3, max_new_tokens=24, tool=None, **sampling
        )
        return [rollout.token_ids for group in groups for rollout in group]

    for sampling in ({"temperature": 0.0}, {"temperature": 1.0, "top_k": 20}):
        assert said(merged, **sampling) == said(adapted, **sampling)
    with adapted.disable_adapter():
        assert said(adapted, temperature=0.0) != said(merged, temperature=0.0)


def test_rl_trains_lora_too(base, tmp_path, monkeypatch):
    options = {"model": base, "output_dir": tmp_path / "out", "tasks": "microworld-identity@8", "num_iterations": 2}
    options |= {"val_tasks": "[]", "prompts_per_step": 2, "num_generations": 4, "max_new_tokens": 8, "save_every": 0}
    options |= {"lora_rank": 2, "learning_rate": 1e-2, "init_lr_frac": 1.0, "eval_every": 0}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    import sys

    (tmp_path / "lengths.py").write_text(
        "def spread(completions, **_):\n    return [float(len(one[0]['content'])) for one in completions]\n"
    )
    sys.path.insert(0, str(tmp_path))
    from nanochat_hf.generation import fast_decoder

    fast, prepare = [], fast_decoder.DecoderWeights.__init__
    monkeypatch.setattr(
        fast_decoder.DecoderWeights, "__init__", lambda self, *given: fast.append(given[1]) or prepare(self, *given)
    )
    run_stage("rl", *words, "--reward", "lengths:spread")
    assert len(fast) == 2, "once per policy update"
    before, after = weights(base), weights(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("layers." in name for name in changed)
