"""What tools that know nothing of this model do with it: resize, shard, adapt, quantise, export."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import randomized, tiny_config
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
from transformers import AutoModelForCausalLM, TorchAoConfig, pipeline

from nanochat_hf import NanochatHFForCausalLM
from nanochat_hf.generation.fast_decoder import FastDecoder
from nanochat_hf.tokenizer import stop_token_ids, train


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    model.save_pretrained(path)
    return path


@torch.no_grad()
def logits_of(model, tokens, **options):
    return model(tokens, use_cache=False, **options).logits


# --- transformers' own


def test_logits_to_keep(model, tokens):
    full = logits_of(model, tokens)
    positions = torch.tensor([0, 5, 89])
    assert torch.equal(logits_of(model, tokens, logits_to_keep=3), full[:, -3:])
    assert torch.equal(logits_of(model, tokens, logits_to_keep=positions), full[:, positions])


@pytest.mark.parametrize("size", [192, 64])
def test_resized_vocabulary(size, model, tokens, tmp_path):
    """Every table of the vocabulary gets its rows, and old tokens mean what they meant."""
    resized = copy.deepcopy(model)
    resized.model.value_embeds["1"].weight.requires_grad_(False)
    resized.resize_token_embeddings(size)
    assert resized.config.vocab_size == resized.vocab_size == size
    tables = [resized.model.embed_tokens, *resized.model.value_embeds.values()]
    assert {table.num_embeddings for table in tables} == {len(table.weight) for table in tables} == {size}
    assert resized.lm_head.out_features == len(resized.lm_head.weight) == size
    assert [table.weight.requires_grad for table in tables] == [True, False, True]
    kept = min(size, 128)
    old = tokens % kept
    assert torch.equal(logits_of(resized, old)[..., :kept], logits_of(model, old)[..., :kept])
    new = torch.full((1, 40), size - 1)
    generated = resized.generate(new, max_new_tokens=10, do_sample=False)
    assert FastDecoder.supports(resized)  # the head is of the class it was
    resized.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.generate(new, max_new_tokens=10, do_sample=False), generated)


def test_resized_to_a_multiple(model):
    resized = copy.deepcopy(model)
    resized.resize_token_embeddings(130, pad_to_multiple_of=64)
    assert {len(table.weight) for table in resized.model.value_embeds.values()} == {192}
    assert resized.config.vocab_size == 192 == len(resized.lm_head.weight)


def test_shards_are_safetensors(model, tokens, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(model.state_dict())
    shards = {path.name for path in tmp_path.glob("*.safetensors")}
    assert shards == set(index["weight_map"].values()) and len(shards) > 3
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path), tokens), logits_of(model, tokens))


def test_pipeline_chats():
    tokenizer = train(["What is 12*3? It is 36. Hello! Who are you? "] * 20, 280)
    model = randomized(tiny_config(vocab_size=320, max_position_embeddings=256))
    with torch.no_grad():
        model.lm_head.weight[127:] = 0  # it speaks ASCII, and never ends a turn
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello!"}]
    chat = pipeline("text-generation", model=model, tokenizer=tokenizer)
    (answer,) = chat(messages, max_new_tokens=12, do_sample=False)
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert answer["generated_text"][:-1] == messages
    assert answer["generated_text"][-1] == {"role": "assistant", "content": tokenizer.decode(tokens)}
    both = chat([messages, messages[1:]], max_new_tokens=12, do_sample=False, batch_size=2)  # padded on the left
    assert both[0] == [answer]


def test_pipeline_keeps_every_part_of_a_batch_of_answers(monkeypatch):
    """Answers of any length, with a call in them or not; the shorter ones are padded with the beginning token."""
    tokenizer = train(["What is 12*3? It is 36. Hello! Who are you? "] * 20, 280)
    model = randomized(tiny_config(vocab_size=320, max_position_embeddings=256))
    model.generation_config.eos_token_id = stop_token_ids(tokenizer)
    said = ["Hi.<|assistant_end|>", "It is <|python_start|>12*3<|python_end|>", "", "Who are you? Who are you?"]
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in said]

    def generate(input_ids, **_):
        chosen, rows[:] = rows[: len(input_ids)], rows[len(input_ids) :]
        width = max(map(len, chosen))
        new = [row + [tokenizer.pad_token_id] * (width - len(row)) for row in chosen]
        return torch.cat([input_ids, torch.tensor(new)], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    chat = pipeline("text-generation", model=model, tokenizer=tokenizer)
    chats = [[{"role": "user", "content": text}] for text in ("Hello!", "What is 12*3? " * 3, "?", "Who?")]
    answers = [answer["generated_text"][-1] for (answer,) in chat(chats, batch_size=4)]
    call = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": "12*3"}}}
    assert answers == [
        {"role": "assistant", "content": "Hi."},
        {"role": "assistant", "content": "It is ", "tool_calls": [call]},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "Who are you? Who are you?"},
    ]


# --- PEFT


@pytest.mark.parametrize("targets", [["q_proj", "v_proj", "up_proj"], "all-linear"], ids=["named", "all"])
def test_lora(targets, model, folder, tokens, tmp_path):
    """An adapter is trained, saved, put on a fresh model and merged into it."""
    config = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    optimizer = torch.optim.SGD([each for each in adapted.parameters() if each.requires_grad], lr=1.0)
    losses = []
    for _ in range(3):
        losses.append(adapted(input_ids=tokens, labels=tokens).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[2] < losses[0] - 0.02
    adapted.eval().save_pretrained(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt")]
    expected = logits_of(adapted, tokens)
    assert (expected - logits_of(model, tokens)).abs().max() > 0.1
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path).eval()
    assert torch.equal(logits_of(loaded, tokens), expected)
    merged = loaded.merge_and_unload()
    assert type(merged) is NanochatHFForCausalLM and FastDecoder.supports(merged)
    torch.testing.assert_close(logits_of(merged, tokens), expected, atol=2e-5, rtol=0)


# --- torchao


@pytest.mark.parametrize(
    ("config", "error"),
    [(Int8WeightOnlyConfig(), 0.02), (IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)), 0.25)],
    ids=["int8", "int4"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_of_few_bits(config, error, dtype, model, folder, tokens, tmp_path):
    options = dict(quantization_config=TorchAoConfig(config), dtype=dtype, device_map="cpu")
    small = AutoModelForCausalLM.from_pretrained(folder, **options)
    plain = {name for name, each in small.named_parameters() if type(each) is torch.nn.Parameter and each.ndim == 2}
    assert {name.split(".")[-2] for name in plain if "embed" not in name} == {"lm_head", "ve_gate", "smear_gate"}
    assert all(type(layer.mlp.up_proj.weight) is not torch.nn.Parameter for layer in small.model.layers)
    full, logits = logits_of(model, tokens), logits_of(small, tokens)
    assert 0 < (logits - full).abs().mean() < error * full.abs().mean()
    generated = small.generate(tokens[:, :30], max_new_tokens=10, do_sample=False)
    assert generated.shape == (3, 40) and not FastDecoder.supports(small)
    small.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded, tokens), logits)
    with torch.inference_mode():  # as chats and servers have it
        torch.testing.assert_close(logits_of(loaded, tokens), logits)


# --- torch.export


def test_exported_program_runs_at_any_size(model, tokens):
    free = {"input_ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}, "use_cache": None}
    inputs = {"input_ids": tokens[:2, :24].clone(), "use_cache": False}
    program = torch.export.export(model, (), inputs, dynamic_shapes=free, strict=False).module()
    for rows, length in ((1, 1), (1, 2), (3, 9), (2, 90)):
        ids = tokens[:rows, :length]
        with torch.no_grad():
            exported = program(input_ids=ids.clone(), use_cache=False).logits
        torch.testing.assert_close(exported, logits_of(model, ids), atol=1e-5, rtol=0)
