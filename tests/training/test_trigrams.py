"""The start from trigrams: counts, what should follow a pair, the fit, and the run that begins with it."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf import tokenizer as tokenizers
from nanochat_hf.optim import peak_rates
from nanochat_hf.settings import load_run
from nanochat_hf.stages.pretrain import main
from nanochat_hf.trainers import bigrams, induction, pretraining_setup, trigrams
from tests.data.toy import START, ByteEncoder, make_documents, write_jsonl

VOCAB = 64
CPU = torch.device("cpu")


class Encoder(ByteEncoder):
    def __len__(self):
        return 257


def config(depth=4, **changes):
    shape = {"vocab_size": VOCAB, "head_dim": 64, "aspect_ratio": 64, "sequence_length": 128}
    return NanochatHFConfig.from_depth(depth, **{**shape, **changes})


@pytest.fixture(scope="module")
def chain():
    """Tokens that depend on the last two: each is a fixed function of both, or of the last alone."""
    rng = np.random.default_rng(0)
    of_last, of_first = (rng.integers(0, VOCAB, (VOCAB, 3)) for _ in range(2))
    ids = [1, 2]
    for _ in range(60_000):
        chosen = of_first[ids[-2]] if rng.random() < 0.6 else of_last[ids[-1]]
        ids.append(int(rng.choice(chosen)))
    return np.array(ids)


@pytest.fixture(scope="module")
def counts(chain):
    found = Counter(zip(chain.tolist(), chain[1:].tolist(), strict=False))
    first, second = torch.tensor(sorted(found)).T.contiguous()
    pairs = bigrams.PairCounts(len(chain), first, second, torch.tensor([float(found[k]) for k in sorted(found)]))
    return pairs, trigrams.count_ids(chain, VOCAB)


def test_triples_are_counted_as_a_plain_loop_counts_them(tmp_path, monkeypatch):
    monkeypatch.setattr(bigrams, "TOKENS_AT_ONCE", 300)
    for name in "abc":
        write_jsonl(tmp_path / f"{name}.jsonl", make_documents(40, name))
    triples = trigrams.count_triples(f"{tmp_path}/*.jsonl", Encoder(), 10**6)
    texts = [text for name in "ab" for text in make_documents(40, name)]  # the last file validates
    ids = [token for text in texts for token in (START, *text.encode())]
    expected, occurs = Counter(zip(ids, ids[1:], ids[2:], strict=False)), Counter(zip(ids, ids[1:-1], strict=False))
    found = {}
    for pair, (start, end) in enumerate(zip(triples.starts[:-1], triples.starts[1:], strict=True)):
        both = int(triples.first[pair]), int(triples.second[pair])
        found |= {(*both, int(triples.third[at])): int(triples.count[at]) for at in range(start, end)}
    assert found == {triple: n for triple, n in expected.items() if occurs[triple[:2]] >= trigrams.FEWEST} != {}


def test_where_no_pair_is_frequent_all_count():
    triples = trigrams.count_ids(np.array([1, 2, 3] * 3, dtype=np.int64), VOCAB)
    assert triples.first.tolist() == [1, 2, 3] and triples.second.tolist() == [2, 3, 1]
    assert triples.third.tolist() == [3, 1, 2] and triples.count.tolist() == [3, 2, 2]
    assert triples.starts.tolist() == [0, 1, 2, 3]
    assert len(trigrams.count_ids(np.array([1, 2], dtype=np.int64), VOCAB).first) == 0


def test_what_should_follow_a_pair_is_a_distribution_that_keeps_the_counts(counts):
    pairs, triples = counts
    drawn = trigrams._Drawn(pairs, triples, VOCAB, CPU)
    first, second = drawn.next_pairs()
    goal = torch.cat([drawn.wanted(slice(0, 1000)), drawn.wanted(slice(1000, trigrams.PAIRS_PER_STEP))])
    assert goal.min() >= 0
    assert abs(goal.sum() - 1) < 1e-5
    torch.testing.assert_close(goal.sum(1), drawn.share)
    pair = int(drawn.drawn[5])
    assert (triples.first[pair], triples.second[pair]) == (first[5], second[5])
    here = slice(int(triples.starts[pair]), int(triples.starts[pair + 1]))
    occurs = triples.count[here].sum()
    conditional = bigrams.SmoothedTable(pairs, VOCAB, CPU).joint(slice(0, VOCAB))[second[5]]
    expected = conditional / conditional.sum() * trigrams.DISCOUNT * (here.stop - here.start) / occurs
    expected[triples.third[here]] += (triples.count[here] - trigrams.DISCOUNT) / occurs
    torch.testing.assert_close(goal[5] / drawn.share[5], expected)


def losses_of(model, chain):
    rows = torch.from_numpy(chain[: 100 * 60]).view(100, 60)
    with torch.no_grad():
        return model(input_ids=rows, labels=rows).loss.item()


def test_a_fitted_model_knows_what_the_token_before_the_last_one_says(chain, counts):
    pairs, triples = counts
    torch.manual_seed(0)
    model = NanochatHFForCausalLM(config()).eval()
    bigrams.fit_bigrams(model, pairs, 40, free=induction.FREE)
    before = losses_of(model, chain)
    said = trigrams.fit_trigrams(model, pairs, triples, 60)
    after = losses_of(model, chain)
    assert after < before - 0.3
    assert after == pytest.approx(said, abs=0.15), "the fit computes what the model computes"
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attention = model(torch.from_numpy(chain[None, :120]), output_attentions=True).attentions[1]
    at = torch.arange(1, 120)
    assert (attention[0, :3, at, at - 1].mean(1) > 0.7).all()
    assert attention[0, 3, at, at - 1].mean() < 0.2, "one head of the layer begins as ever"
    states = model.get_input_embeddings().weight[:, -induction.FREE :]
    assert (states[:, :-1] == 0).all() and (states[:, -1] == 1).all(), "the free channels stay free"


@pytest.mark.parametrize("changes", [{}, {"depth": 6}, {"depth": 4, "head_dim": 128}], ids=str)
def test_the_last_state_is_what_the_fit_takes_it_for(changes):
    torch.manual_seed(0)
    model = NanochatHFForCausalLM(config(**changes)).eval()
    width, layer = model.config.hidden_size, trigrams.layer_of_table(model.config)
    with torch.no_grad():
        states = model.get_input_embeddings().weight
        states[:, -induction.FREE :] = 0
        states[:, -1] = 1
    rank = round(0.75 * model.config.num_attention_heads) * model.config.head_dim
    directions = trigrams._directions(torch.randn(VOCAB, width), rank)
    table = torch.randn(VOCAB, directions.shape[1]) / 8
    trigrams._write_table(model.model, layer, table, directions)
    own, added = trigrams._shares(model.model, layer)
    first, second = torch.arange(VOCAB), torch.arange(VOCAB).roll(7)
    last = own * F.rms_norm(states[second], (width,)) + added * trigrams.ATTENTION * table[first] @ directions.T
    with torch.no_grad():
        found = model.model(torch.stack([first, second], 1)).last_hidden_state[:, 1]
    assert F.cosine_similarity(found, last).min() > 0.98


@pytest.mark.parametrize(
    ("depth", "changes", "layer"),
    [
        (4, {}, 1),
        (6, {}, 1),
        (5, {}, 2),
        (2, {}, None),  # the only layer with value embeddings is the last
        (3, {"aspect_ratio": 96}, None),
        (4, {"head_dim": 32}, None),
        (4, {"preset": "classic"}, None),
    ],
)
def test_models_without_a_layer_for_it_have_no_table(depth, changes, layer):
    assert trigrams.layer_of_table(config(depth, **changes)) == layer
    if layer is None:
        with pytest.raises(ValueError, match="no layer between the first and the last"):
            trigrams.fit_trigrams(NanochatHFForCausalLM(config(depth, **changes)), None, None)


def test_a_run_too_short_for_the_fit_has_none():
    step = 6 * 2048 * 8192 * 256
    assert trigrams.fit_steps(8192, 256, 1e15) == trigrams.STEPS
    assert trigrams.fit_steps(8192, 256, 4 * 70.5 * step) == 70
    assert trigrams.fit_steps(8192, 256, 4 * 49.5 * step) == 0


def test_fitted_value_embeddings_train_at_a_fifth_of_the_rate():
    rates = [peak_rates("small", 0.5, fitted=True, trigrams=fitted)["value_embedding_lr"] for fitted in (False, True)]
    assert rates == pytest.approx([0.075, 0.015])
    assert peak_rates("small", 1.0, fitted=True, trigrams=True, value_embedding_lr=0.1)["value_embedding_lr"] == 0.1


def test_a_run_begins_with_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trigrams, "STEPS", 8)
    monkeypatch.setattr(trigrams, "FEWEST_STEPS", 1)
    made = []
    build = pretraining_setup.build_trainer
    monkeypatch.setattr(pretraining_setup, "build_trainer", lambda *a: made.append(build(*a)) or made[-1])
    for name in "abc":
        write_jsonl(tmp_path / f"{name}.jsonl", make_documents(40, name))
    tokenizers.train(make_documents(200), 300).save_pretrained(tmp_path / "tokenizer")
    options = ["--data", f"{tmp_path}/*.jsonl", "--tokenizer", str(tmp_path / "tokenizer"), "--bigram_tokens", "3000"]
    options += ["--depth", "4", "--head_dim", "64", "--sequence_length", "64", "--total_batch_size", "512"]
    options += [
        "--num_iterations",
        "4",
        "--eval_every",
        "0",
        "--log_every",
        "1",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    main([*options, "--save_every", "2"])
    printed = capsys.readouterr().out
    assert "in 40 steps, value embeddings to its trigrams in 8 (--bigram_tokens 0" in printed
    assert " nats, trigrams: " in printed and "; 2 induction heads; " in printed
    assert load_run(tmp_path / "run")["bigram_start"]["trigram_steps"] == 8
    main([*options[:-1], str(tmp_path / "without"), "--induction_heads", "false"])
    printed = capsys.readouterr().out
    assert "trigrams" not in printed and "in 40 steps (--bigram_tokens 0" in printed
    rates = [
        {group["name"]: group["initial_lr"] for group in trainer.optimizer.param_groups}["value_embedding"]
        for trainer in made
    ]
    assert rates[0] == pytest.approx(rates[1] / 5)
