"""Chat stages on models that are not ours: a Llama-like one with its own tokenizer and template, or without any."""

import importlib.util
import json

import pytest
import torch
from chat_toy import run_stage
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nanochat_hf.generation.chat_format import ChatFormat
from nanochat_hf.settings import UserError

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + "
    "'<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
NO_SYSTEM_TEMPLATE = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + PLAIN_TEMPLATE
CHAT = [
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "It is 5."},
    {"role": "user", "content": "Thanks!"},
    {"role": "assistant", "content": "You are welcome."},
]
CALL = {
    "role": "assistant",
    "content": [
        {"type": "text", "text": "It is "},
        {"type": "python", "text": "2+3"},
        {"type": "python_output", "text": "5"},
        {"type": "text", "text": "5."},
    ],
}


def own_tokenizer(template=None):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(
        ["What is 2 + 3? It is 5. Thanks! You are welcome. user assistant system"] * 9, trainer
    )
    begin = [("<s>", backend.token_to_id("<s>"))]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=begin)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="<|im_end|>" if template else "<s>",
        additional_special_tokens=["<|im_start|>"] if template else [],
        chat_template=template,
    )


def own_model(folder, template=None, **changes):
    tokenizer = own_tokenizer(template)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 1, "max_position_embeddings": 128} | changes
    config = LlamaConfig(
        vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=tokenizer.eos_token_id, pad_token_id=None, **shape
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    with path.open("w") as file:
        for n in range(60):
            question = {"role": "user", "content": f"What is {n % 5} + {n % 7}?"}
            calls = [{**part} for part in CALL["content"]]
            calls[1]["text"], calls[2]["text"] = f"{n % 5}+{n % 7}", str(n % 5 + n % 7)
            calls[3]["text"] = f"{n % 5 + n % 7}."
            file.write(json.dumps([question, {"role": "assistant", "content": calls}]) + "\n")
    return path


def arguments(model, chats, output, **changes):
    options = {"model": model, "output_dir": output, "tasks": f"conversations={chats}", "max_seq_len": 64}
    options |= {"val_tasks": f"conversations={chats}@10", "total_batch_size": 512, "device_batch_size": 8}
    options |= {"num_iterations": 30, "num_threads": 1, "learning_rate": 5e-3, "init_lr_frac": 1.0, "save_every": 0}
    return [word for name, value in (options | changes).items() for word in (f"--{name}", value)]


def val_losses(folder):
    history = json.loads((folder / "run.json").read_text())["history"]
    name = next(name for row in history for name in row if name.startswith("val_loss"))
    return [row[name] for row in history if name in row]


# ---- how conversations are written --------------------------------------------------


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, MARKED_TEMPLATE], ids=["plain", "marked"])
def test_the_mask_is_what_the_assistant_says(template):
    tokenizer = own_tokenizer(template)
    form = ChatFormat(tokenizer)
    assert not form.ours and (form.marked_template is None) == (template == PLAIN_TEMPLATE)
    ids, mask = form.conversation(CHAT)
    assert ids == tokenizer.apply_chat_template(CHAT, return_dict=False)
    said = tokenizer.decode([token for token, trained in zip(ids, mask, strict=True) if trained])
    assert said == "It is 5.<|im_end|>You are welcome.<|im_end|>"
    assert form.prompt(CHAT[:1]) == ids[: len(form.prompt(CHAT[:1]))]


def test_trls_marked_copy_of_a_known_template_is_used():
    from trl.chat_template_utils import qwen2_5_chat_template

    tokenizer = own_tokenizer(qwen2_5_chat_template)
    form = ChatFormat(tokenizer)
    assert form.marked_template not in (None, tokenizer.chat_template) and form.has_tools
    messages = [CHAT[0], CALL]
    ids, mask = form.conversation(messages)
    said = tokenizer.decode([token for token, trained in zip(ids, mask, strict=True) if trained])
    assert '{"name": "calculator", "arguments": {"expression": "2+3"}}' in said and said.rstrip().endswith(
        "5.<|im_end|>"
    )
    assert "<tool_response>" not in said and "<tool_response>" in tokenizer.decode(ids)
    assert '"name": "weekday"' in tokenizer.decode(ids), "the tools are declared where calls are made"


def test_messages_fit_templates_without_tools_or_system_messages():
    form = ChatFormat(own_tokenizer(NO_SYSTEM_TEMPLATE))
    system = {"role": "system", "content": "Be brief."}
    found = form.own_messages([system, CHAT[0], CALL])
    assert found == [
        {"role": "user", "content": "Be brief.\n\nWhat is 2 + 3?"},
        {"role": "assistant", "content": "It is 5."},
    ]
    silent = {"role": "assistant", "content": CALL["content"][:3]}
    assert form.own_messages([silent])[0]["content"] == "It is 5"


def test_our_models_are_rendered_as_before(tmp_path):
    from chat_toy import make_base

    from nanochat_hf.tokenizer import render_conversation, render_prompt

    tokenizer = AutoTokenizer.from_pretrained(make_base(tmp_path))
    form = ChatFormat(tokenizer)
    assert form.ours and form.conversation([CHAT[0], CALL]) == render_conversation(tokenizer, [CHAT[0], CALL])
    assert form.prompt(CHAT[:3], tools=True) == render_prompt(tokenizer, CHAT[:3])


# ---- the stages ---------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw"}], ids=["muon", "adamw"])
def test_sft_teaches_a_llama_with_its_own_template(changes, chats, tmp_path):
    base = own_model(tmp_path / "base", PLAIN_TEMPLATE)
    run_stage("sft", *arguments(base, chats, tmp_path / "out", eval_every=10, **changes))
    losses = val_losses(tmp_path / "out")
    assert losses[-1] < 0.7 * losses[0]
    model, tokenizer = (kind.from_pretrained(tmp_path / "out") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert type(model) is LlamaForCausalLM and tokenizer.chat_template == PLAIN_TEMPLATE
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id
    start = LlamaForCausalLM.from_pretrained(base)
    changed = [not torch.equal(a, b) for a, b in zip(start.parameters(), model.parameters(), strict=True)]
    assert all(changed)


def test_a_model_without_a_template_gets_ours(chats, tmp_path, capsys):
    base = own_model(tmp_path / "base")
    run_stage("midtrain", *arguments(base, chats, tmp_path / "out", eval_every=10))
    assert "our 9 control tokens and template are installed" in capsys.readouterr().out
    losses = val_losses(tmp_path / "out")
    assert losses[-1] < 0.7 * losses[0]
    from nanochat_hf.generation import generate_with_tools, load_checkpoint

    model, tokenizer = load_checkpoint(tmp_path / "out", device="cpu")
    assert model.get_input_embeddings().num_embeddings % 64 == 0 and tokenizer.bos_token == "<|bos|>"
    assert ChatFormat(tokenizer).ours
    [[rollout]] = generate_with_tools(model, tokenizer, [CHAT[:1]], max_new_tokens=8, temperature=0.0)
    assert rollout.token_ids
    # The next stage takes it as one of ours.
    run_stage("sft", *arguments(tmp_path / "out", chats, tmp_path / "sft", num_iterations=2, eval_every=0))
    assert "are installed" not in capsys.readouterr().out


def test_a_model_that_is_nowhere_is_named(tmp_path, chats):
    for name in ("nowhere", str(tmp_path / "nothing" / "here"), "runs"):
        with pytest.raises(UserError, match="is no checkpoint folder"):
            run_stage("sft", *arguments(name, chats, tmp_path / "out"))


# ---- settings that every chat stage has ---------------------------------------------


@pytest.mark.parametrize("kind", ["ours", "llama"])
def test_gradient_checkpointing_changes_nothing(kind, chats, tmp_path):
    from chat_toy import make_base

    base = make_base(tmp_path / "base") if kind == "ours" else own_model(tmp_path / "base", PLAIN_TEMPLATE)
    options = {"num_iterations": 3, "val_tasks": "[]", "init_lr_frac": 0.1}
    run_stage("sft", *arguments(base, chats, tmp_path / "plain", **options))
    run_stage("sft", *arguments(base, chats, tmp_path / "again", **options, gradient_checkpointing="true"))
    plain, found = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("plain", "again"))
    for name in plain:
        torch.testing.assert_close(plain[name], found[name], rtol=0, atol=1e-6)


def test_curves_are_written_or_their_package_is_asked_for(chats, tmp_path):
    """tensorboard is no dependency of this project."""
    base = own_model(tmp_path / "base", PLAIN_TEMPLATE)
    options = {"num_iterations": 2, "val_tasks": "[]", "report_to": "tensorboard"}
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(UserError, match="--report_to tensorboard needs its package: pip install tensorboard"):
            run_stage("sft", *arguments(base, chats, tmp_path / "out", **options))
        assert not (tmp_path / "out" / "model.safetensors").exists()
        return
    run_stage("sft", *arguments(base, chats, tmp_path / "out", **options))
    assert list((tmp_path / "out").rglob("events.out.tfevents*"))
