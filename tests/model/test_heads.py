"""Classification, token classification and question answering: transformers' generic heads over the decoder."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_models import classic_fields, randomized, tiny_config
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    pipeline,
)
from trl import RewardConfig, RewardTrainer

from nanochat_hf import (
    NanochatHFForQuestionAnswering,
    NanochatHFForSequenceClassification,
    NanochatHFForTokenClassification,
)
from nanochat_hf.tokenizer import train

HEADS = {
    AutoModelForSequenceClassification: NanochatHFForSequenceClassification,
    AutoModelForTokenClassification: NanochatHFForTokenClassification,
    AutoModelForQuestionAnswering: NanochatHFForQuestionAnswering,
}


@pytest.fixture(scope="module")
def tokenizer():
    return train(["What is 12*3? It is 36. Hello! Who are you? "] * 20, 280)


@pytest.fixture(scope="module", params=["modern", "classic"])
def folder(request, tokenizer, tmp_path_factory):
    """A causal model's folder, which heads are put on."""
    path = tmp_path_factory.mktemp(request.param)
    fields = classic_fields() if request.param == "classic" else {}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    randomized(tiny_config(vocab_size=320, **fields, **ids)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("auto", HEADS, ids=lambda auto: auto.__name__)
def test_a_head_goes_on_a_causal_model_and_is_saved(auto, folder, tmp_path):
    labels = {} if auto is AutoModelForQuestionAnswering else {"num_labels": 3}
    torch.manual_seed(0)
    model, loading = auto.from_pretrained(folder, output_loading_info=True, **labels)
    assert type(model) is HEADS[auto]
    assert {name.split(".")[0] for name in loading["missing_keys"]} <= {"score", "qa_outputs"}
    head = model.qa_outputs if auto is AutoModelForQuestionAnswering else model.score
    assert 0.3 < head.weight.std() * 64**0.5 < 3
    ids = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(1))
    states = model.eval().model(ids, use_cache=False).last_hidden_state
    outputs = model(ids)
    if auto is AutoModelForSequenceClassification:
        expected = head(states[:, -1])
        torch.testing.assert_close(outputs.logits, expected)
        loss = torch.nn.functional.cross_entropy(expected, torch.tensor([2, 0]))
        torch.testing.assert_close(model(ids, labels=torch.tensor([2, 0])).loss, loss)
    elif auto is AutoModelForTokenClassification:
        torch.testing.assert_close(outputs.logits, head(states))
        loss = torch.nn.functional.cross_entropy(head(states).flatten(0, 1), ids.flatten() % 3)
        torch.testing.assert_close(model(ids, labels=ids % 3).loss, loss)
    else:
        torch.testing.assert_close(outputs.end_logits, head(states)[..., 1])
        assert model(ids, start_positions=torch.tensor([1, 2]), end_positions=torch.tensor([3, 2])).loss > 0
    model.save_pretrained(tmp_path)
    assert HEADS[auto].__name__ in json.loads((tmp_path / "config.json").read_text())["architectures"]
    again = auto.from_pretrained(tmp_path).eval()(ids)
    torch.testing.assert_close(again[0], outputs[0], atol=0, rtol=0)


def test_padding_on_either_side_changes_no_score(folder, tokenizer):
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    texts = ["Hello! Who are you?", "It is 36."]
    alone = [model(**tokenizer(text, return_tensors="pt")).logits for text in texts]
    for side in ("left", "right"):
        batch = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
        torch.testing.assert_close(model(**batch).logits, torch.cat(alone), atol=1e-5, rtol=0)
    scores = pipeline("text-classification", model=model, tokenizer=tokenizer)(texts, batch_size=2)
    assert [set(score) for score in scores] == [{"label", "score"}] * 2


@pytest.mark.parametrize("adapter", [None, LoraConfig(task_type="SEQ_CLS", r=2)], ids=["whole", "LoRA"])
def test_trls_reward_trainer(adapter, folder, tokenizer, tmp_path):
    pairs = [{"chosen": f"It is {number}.", "rejected": f"Hello! {number}"} for number in range(8)]
    rows = [
        {
            name: [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]
            for name, text in pair.items()
        }
        for pair in pairs
    ]
    arguments = RewardConfig(
        str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        use_cpu=True,
        bf16=False,
        report_to="none",
        logging_steps=1,
        save_strategy="no",
    )
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    trainer = RewardTrainer(
        model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=adapter
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_a_bare_lora_config_adapts_queries_and_values(folder):
    from transformers import AutoModelForCausalLM

    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig())
    trained = {name.split(".")[-4] for name, each in adapted.named_parameters() if each.requires_grad}
    assert trained == {"q_proj", "v_proj"}
