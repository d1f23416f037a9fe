"""Induction heads that a run begins with: where they attend, what they expect, and which models have none."""

import pytest
import torch

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf import tokenizer as tokenizers
from nanochat_hf.settings import load_run
from nanochat_hf.stages.pretrain import main
from nanochat_hf.trainers import bigrams, induction
from tests.data.toy import make_documents, write_jsonl

VOCAB, LENGTH = 256, 200


def config(**changes):
    shape = {"vocab_size": VOCAB, "head_dim": 64, "aspect_ratio": 64, "sequence_length": 2 * LENGTH}
    return NanochatHFConfig.from_depth(4, **{**shape, **changes})


def all_pairs():
    """Every token is followed by every other, with random frequencies."""
    first, second = torch.cartesian_prod(torch.arange(VOCAB), torch.arange(VOCAB)).T.contiguous()
    count = torch.distributions.Gamma(0.3, 0.01).sample((VOCAB * VOCAB,)).round() + 1
    return bigrams.PairCounts(int(count.sum()), first, second, count)


@pytest.fixture(scope="module")
def models():
    """A model with the heads and one without, and rows of random tokens of which each comes twice."""
    torch.manual_seed(0)
    pairs, made = all_pairs(), []
    for heads in (2, 0):
        torch.manual_seed(0)
        model = NanochatHFForCausalLM(config()).eval()
        bigrams.fit_bigrams(model, pairs, 16, free=induction.FREE if heads else 0)
        if heads:
            induction.write_heads(model, torch.bincount(pairs.second, pairs.count), heads)
        made.append(model)
    once = torch.stack([torch.randperm(VOCAB)[:LENGTH] for _ in range(4)])
    return *made, torch.cat([once, once], 1)


def test_one_head_looks_back_one_token_and_two_continue_what_was_there(models):
    model, _, rows = models
    model.set_attn_implementation("eager")
    with torch.no_grad():
        first, *_, last = model(rows, output_attentions=True).attentions  # [rows, heads, queries, keys]
    model.set_attn_implementation("sdpa")
    at = torch.arange(1, 2 * LENGTH)
    assert first[:, 0, at, at - 1].mean() > 0.7
    again = torch.arange(LENGTH, 2 * LENGTH)
    for head in range(2):
        found = last[:, head, again, again - LENGTH + 1].mean()
        assert found > 0.5 > 100 * last[:, head, again, again - LENGTH].mean(), "the token after, not the token itself"
    assert last[:, 2:, again, again - LENGTH + 1].mean() < 0.05, "other heads begin as ever"


def test_what_comes_again_is_expected(models):
    losses = []
    for model in models[:2]:
        with torch.no_grad():
            logits = model(models[2]).logits[:, :-1]
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), models[2][:, 1:], reduction="none")
        losses.append([each[:, : LENGTH - 1].mean().item(), each[:, LENGTH:].mean().item()])
    (new, again), (new_without, again_without) = losses
    assert again < again_without - 2 and new < new_without + 0.2
    assert abs(again_without - new_without) < 0.2


def test_all_of_it_is_trained(models):
    model, _, rows = models
    loss = model(input_ids=rows, labels=rows).loss
    layers = model.model.layers
    weights = [getattr(layers[0].self_attn, f"{name}_proj").weight for name in "qkvo"]
    weights += [getattr(layers[-1].self_attn, f"{name}_proj").weight for name in "qko"]
    gradients = torch.autograd.grad(loss, [*weights, model.model.value_embeds["3"].weight])
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize(
    ("changes", "heads"),
    [
        ({}, 2),
        ({"aspect_ratio": 96}, 2),
        ({"head_dim": 128}, 1),
        ({"head_dim": 32}, 0),  # too few slow frequencies
        ({"aspect_ratio": 16}, 0),  # too narrow
        ({"preset": "classic"}, 0),
        ({"num_key_value_heads": 2}, 0),
    ],
)
def test_models_without_room_for_them_have_none(changes, heads):
    assert induction.number_of_heads(config(**changes)) == heads


def test_a_run_begins_with_them_unless_it_is_told_not_to(tmp_path, capsys):
    for name in "abc":
        write_jsonl(tmp_path / f"{name}.jsonl", make_documents(40, name))
    tokenizers.train(make_documents(200), 300).save_pretrained(tmp_path / "tokenizer")
    options = ["--data", f"{tmp_path}/*.jsonl", "--tokenizer", str(tmp_path / "tokenizer"), "--bigram_tokens", "3000"]
    options += ["--depth", "2", "--head_dim", "64", "--sequence_length", "64", "--total_batch_size", "512"]
    options += ["--num_iterations", "4", "--eval_every", "0", "--log_every", "1"]
    losses = []
    for name, more in (("with", []), ("without", ["--induction_heads", "false"])):
        main([*options, "--output_dir", str(tmp_path / name), *more])
        losses.append([row["loss"] for row in load_run(tmp_path / name)["history"] if "loss" in row])
        assert ("; 1 induction head; " in capsys.readouterr().out) == (name == "with")
    assert losses[0][0] != losses[1][0] and losses[0][-1] < losses[1][-1] + 0.1
