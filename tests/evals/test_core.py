"""CORE: batched evaluation against one item per forward pass, nanochat's sampling rules, damaged bundles."""

import copy
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from byte_tokens import encode_bytes

from nanochat_hf.evals import core
from nanochat_hf.evals.bundle import CoreTask, load_bundle
from nanochat_hf.evals.scoring import Row, Span, plan_batches, plan_groups, read_groups, score_groups
from nanochat_hf.settings import UserError

ROOT = Path(__file__).resolve().parents[2]


def reference_outcomes(model, task):
    """nanochat's rules, one item and one sequence at a time, without any of the code under test."""
    right = []
    for index, item in enumerate(task.items):
        pool = [i for i in range(len(task.items)) if i != index]
        shots = [task.items[i] for i in random.Random(1234 + index).sample(pool, min(task.num_fewshot, len(pool)))]
        if task.kind == "multiple_choice":
            head = "".join(s["query"] + task.delimiter + s["choices"][s["gold"]] + "\n\n" for s in shots)
            options = [head + item["query"] + task.delimiter + choice for choice in item["choices"]]
            rows = encode_bytes(options)
            start = next(i for i in range(min(map(len, rows)) + 1) if len({tuple(row[: i + 1]) for row in rows}) > 1)
            starts = [start] * len(rows)
        elif task.kind == "schema":
            rows = encode_bytes([c + task.delimiter + item["continuation"] for c in item["context_options"]])
            shared = next(i for i in range(1, 999) if len({tuple(row[-i:]) for row in rows}) > 1) - 1
            starts = [len(row) - shared for row in rows]
        else:
            head = "".join(s["context"].strip() + task.delimiter + s["continuation"] + "\n\n" for s in shots)
            bare = head + item["context"].strip() + task.delimiter
            rows = encode_bytes([bare + item["continuation"]])
            starts = [len(encode_bytes([bare.strip()])[0])]
        losses, greedy = [], []
        for row, start in zip(rows, starts, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([row])).logits[0]
            surprise = -logits.log_softmax(-1)[range(len(row) - 1), row[1:]]
            losses.append(surprise[start - 1 :].mean().item())
            greedy.append(bool((logits[start - 1 : -1].argmax(-1) == torch.tensor(row[start:])).all()))
        right.append(
            float(greedy[0] if task.kind == "language_modeling" else losses.index(min(losses)) == item["gold"])
        )
    return right


@pytest.mark.parametrize("label", ["choice", "schema", "language"])
@pytest.mark.parametrize("max_tokens", [1, 3000])
def test_batched_outcomes_equal_one_item_per_forward(tiny_model, bundle, label, max_tokens):
    (task,) = load_bundle(bundle, labels=[label])
    result = core.evaluate_task(tiny_model, encode_bytes, task, max_tokens=max_tokens)
    assert result.outcomes == reference_outcomes(tiny_model, task)
    assert result.truncated == 0
    if label != "language":
        assert 0 < result.accuracy < 1, "the fixture must have right and wrong items, or equality says nothing"


def test_greedy_continuations_are_recognised(tiny_model):
    """A random model never hits by chance, so the continuation is taken from the model itself."""
    contexts, items = ["one two", "three", "four five six seven"], []
    for context in contexts:
        ids = torch.tensor(encode_bytes([context]))
        for _ in range(3):  # "context" + delimiter is cut to "context" by the rule, so the blank is predicted too
            ids = torch.cat([ids, tiny_model(ids).logits[:, -1:].argmax(-1)], dim=1)
        items.append((ids[0].tolist(), len(context) + 1))
    spans = [Span(ids, start, len(ids)) for ids, start in items]
    spans.append(Span([*items[0][0][:-1], (items[0][0][-1] + 1) % 256], items[0][1], len(items[0][0])))
    scores = scores_of(tiny_model, [[span] for span in spans])
    assert [scores[i].is_greedy for i in range(4)] == [True, True, True, False]


def scores_of(model, groups, **options):
    """The scores of all spans, group after group."""
    found = dict(pair for batch in score_groups(model, groups, **options) for pair in batch)
    assert found.keys() == set(range(len(groups)))
    return [score for index in range(len(groups)) for score in found[index]]


def random_groups(count, seed=1):
    """Groups of one to four spans that share a beginning of 0 to 60 tokens; some of them share all but one token."""
    rng = random.Random(seed)
    groups = []
    for _ in range(count):
        shared = [rng.randrange(256) for _ in range(rng.choice([1, 5, 33, 60]))]
        rows = [shared + [rng.randrange(256) for _ in range(rng.choice([1, 2, 9]))] for _ in range(rng.randint(1, 4))]
        starts = [rng.randint(len(shared), len(row)) for row in rows]
        groups.append([Span(row, start, len(row)) for row, start in zip(rows, starts, strict=True)])
    return groups


@pytest.fixture(scope="module")
def modern_model():
    """Our architecture, with all that has a state of its own: windows shorter than the prompts, smear, backout."""
    from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM

    config = NanochatHFConfig.from_depth(4, vocab_size=320, sequence_length=64, head_dim=16, aspect_ratio=8)
    config.sliding_window = 17
    torch.manual_seed(0)
    model = NanochatHFForCausalLM(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    assert "sliding_attention" in config.layer_types and config.smear and config.backout
    return model.eval()


@pytest.mark.parametrize("which", ["tiny_model", "modern_model"])
@pytest.mark.parametrize("max_tokens", [1, 150, 10**6])
def test_scores_equal_those_of_each_row_alone(request, which, max_tokens):
    """What the rows of a group share is read once, into a cache: the scores stay those of whole rows."""
    model, groups = request.getfixturevalue(which), random_groups(25)
    scores = iter(scores_of(model, groups, max_tokens=max_tokens))
    for span in (span for group in groups for span in group):
        found = next(scores)
        with torch.no_grad():
            logits = model(torch.tensor([span.ids])).logits[0].double()
        if span.start == span.end:
            assert math.isnan(found.mean_loss)
            continue
        losses = -logits.log_softmax(-1)[range(len(span.ids) - 1), span.ids[1:]][span.start - 1 :]
        assert found.mean_loss == pytest.approx(losses.mean().item(), abs=1e-5)
        assert found.is_greedy == (logits[span.start - 1 : -1].argmax(-1).tolist() == span.ids[span.start :])


def tokens_read(model, groups, **options):
    """Numbers of tokens that the model reads, padding included, and of positions whose logits it computes."""
    sizes = []
    hook = model.register_forward_pre_hook(
        lambda _, __, named: sizes.append(named["input_ids"].numel()), with_kwargs=True
    )
    other = model.register_forward_hook(lambda _, __, output: sizes.append(1j * output.logits.shape[:2].numel()))
    list(score_groups(model, groups, **options))
    hook.remove(), other.remove()
    total = sum(sizes)
    return int(total.real), int(total.imag)


def test_what_options_share_is_read_once_and_unscored_positions_have_no_logits(tiny_model):
    shared = list(range(200))
    options = [Span([*shared, 7, *range(n)], 200, 201 + n) for n in (4, 4, 4, 4)]
    assert tokens_read(tiny_model, [options]) == (200 + 4 * 4, 1 + 4 * 4)
    single = [Span([*shared, option], 200, 201) for option in (1, 2, 3)]
    assert tokens_read(tiny_model, [single]) == (200, 1), "where options are one token, the prompt says it all"
    longer = [Span([*shared, 5, 6, *range(n)], 202, 202 + n) for n in (3, 9)]
    assert tokens_read(tiny_model, [longer]) == (202 + 2 * 8, 1 + 2 + 8)
    alone = [Span([*shared, 5, 6, 7], 201, 203)]
    assert tokens_read(tiny_model, [alone]) == (202, 2)


def test_models_without_a_cache_of_keys_and_values_read_whole_rows(tiny_model, monkeypatch):
    groups = random_groups(10)
    expected = scores_of(tiny_model, groups)
    monkeypatch.setattr(type(tiny_model), "_is_stateful", True)
    found = scores_of(tiny_model, groups)
    assert [score.is_greedy for score in found] == [score.is_greedy for score in expected]
    shared = [Span([*range(200), option], 200, 201) for option in (1, 2)]
    assert tokens_read(tiny_model, [shared]) == (400, 2)


def test_plans_share_only_what_pays():
    def group(shared, *tails):
        beginning = list(range(shared))
        return [Row([*beginning, 900 + n, *range(length - 1)], shared) for n, length in enumerate(tails)]

    long, short = [group(500, 5, 5, 5, 5), group(499, 5, 5, 5, 5)], [group(3, 5, 5)] * 4
    plan = plan_groups(long + short, 10**5, forward_cost=60)
    assert [(batch.groups, batch.shared) for batch in plan] == [([1, 0], 499), ([2, 3, 4, 5], 0)]
    assert [batch.shared for batch in plan_groups(long, 10**5, forward_cost=60, share=False)] == [0]
    limited = plan_groups(long, 2500, forward_cost=60)
    assert [batch.groups for batch in limited] == [[0], [1]], "both would have 8 rows of 505 tokens"
    assert plan_groups([[], group(3, 1)], 100)[0].groups == [1]


def test_the_plan_costs_no_more_than_any_other_cut():
    rng = random.Random(3)
    groups = [[Row([0] * rng.randint(1, 90), 0)] for _ in range(9)]
    lengths = sorted(len(rows[0].ids) for rows in groups)

    def cost(batches):
        return sum(len(batch) * max(batch) + 30 for batch in batches)

    cuts = []
    for mask in range(2**8):
        batches, begin = [], 0
        for end in range(1, 10):
            if end == 9 or mask >> (end - 1) & 1:
                batches.append(lengths[begin:end])
                begin = end
        if all(len(batch) * max(batch) <= 200 for batch in batches):
            cuts.append(cost(batches))
    plan = plan_groups(groups, 200, forward_cost=30)
    assert cost([[len(groups[i][0].ids) for i in batch.groups] for batch in plan]) == min(cuts)


def test_rows_without_anything_to_score(tiny_model):
    assert [math.isnan(s.mean_loss) for s in scores_of(tiny_model, [[Span([5], 1, 1), Span([5, 6, 7], 1, 3)]])] == [
        1,
        0,
    ]
    ((batch, logits),) = read_groups(tiny_model, [[Row([3, 4], 2)]])
    assert batch == [0] and len(logits) == 0


def test_few_shot_draw_is_that_of_sampling_from_the_other_items():
    items = [{"n": n} for n in range(40)]
    task = CoreTask("t", "language_modeling", 10, " ", 0.0, items)
    for index in (0, 1, 20, 39):
        others = [item for i, item in enumerate(items) if i != index]
        assert core.fewshot_examples(task, index) == random.Random(1234 + index).sample(others, 10)


def test_few_shot_pool_smaller_than_asked(tiny_model, bundle):
    (task,) = load_bundle(bundle, max_per_task=3, labels=["choice"])
    assert task.num_fewshot == 3 and len(task.items) == 3
    assert len(core.fewshot_examples(task, 0)) == 2
    assert core.evaluate_task(tiny_model, encode_bytes, task).outcomes == reference_outcomes(tiny_model, task)
    (single,) = load_bundle(bundle, max_per_task=1, labels=["choice"])
    assert len(core.evaluate_task(tiny_model, encode_bytes, single).outcomes) == 1


def test_crop_is_the_prefix_of_the_fixed_shuffle(bundle):
    lines = (bundle / "eval_data" / "sub" / "language.jsonl").read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines]
    random.Random(1337).shuffle(items)
    (task,) = load_bundle(bundle, max_per_task=5, labels=["language"])
    assert task.items == items[:5]


def test_long_prompts_keep_their_end_and_are_counted(tiny_model, bundle):
    (task,) = load_bundle(bundle, labels=["choice"])
    longest = [max(map(len, encode_bytes(core.render(task, x, core.fewshot_examples(task, i)))))
               for i, x in enumerate(task.items)]  # fmt: skip
    limit = sorted(longest)[len(longest) // 2]
    result = core.evaluate_task(tiny_model, encode_bytes, task, max_length=limit)
    assert result.truncated == sum(length > limit for length in longest) > 0
    assert Span([1, 2, 3, 4, 5], 3, 5).crop(4) == Span([2, 3, 4, 5], 2, 4)
    assert Span([1, 2, 3, 4, 5], 1, 5).crop(3) == Span([3, 4, 5], 1, 3), "one token of context always stays"


def test_published_and_corrected_baselines(tiny_model, bundle):
    results = [core.evaluate_task(tiny_model, encode_bytes, task) for task in load_bundle(bundle)]
    metrics = core.summarize(results)
    choice, schema, language = (result.accuracy for result in results)
    published = ((choice - 0.62) / 0.38 + (schema - 0.5) / 0.5 + language) / 3
    corrected = ((choice - 1 / 3) / (2 / 3) + (schema - 0.5) / 0.5 + language) / 3
    assert metrics["core"] == pytest.approx(published)
    assert metrics["core_corrected"] == pytest.approx(corrected)
    assert metrics["core_low"] < metrics["core"] < metrics["core_high"]


def test_tokenizer_that_merges_across_the_border():
    """Where the prompt's tokens are no prefix of the whole, scoring begins at the first difference."""
    task = CoreTask("t", "language_modeling", 0, " ", 0.0, [])
    assert core.spans_of(task, [[9, 1, 2], [9, 1, 7, 8]]) == [Span([9, 1, 7, 8], 2, 4)]


def test_batches_respect_the_token_limit():
    lengths = [5, 1, 9, 3, 3, 30]
    batches = plan_batches(lengths, 12)
    assert sorted(index for batch in batches for index in batch) == list(range(6))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 12 for batch in batches)
    assert batches[0] == [5], "the longest comes first, even when it alone is over the limit"


def set_choice(folder, line):
    (folder / "eval_data/sub/choice.jsonl").write_text(line)


def set_task(folder, **values):
    entry = {"label": "choice", "dataset_uri": "sub/choice.jsonl", "icl_task_type": "multiple_choice"}
    entry |= {"num_fewshot": [1]} | values
    (folder / "core.yaml").write_text(json.dumps({"icl_tasks": [entry]}))


def double_task(folder):
    tasks = yaml.safe_load((folder / "core.yaml").read_text())["icl_tasks"]
    (folder / "core.yaml").write_text(yaml.safe_dump({"icl_tasks": [*tasks, tasks[0]]}))


def set_chance(folder, percent):
    (folder / "eval_meta_data.csv").write_text(f"Eval Task,Random baseline\nchoice,{percent}\n")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "core.yaml").unlink(), "no core.yaml"),
        (lambda folder: (folder / "eval_data/sub/choice.jsonl").unlink(), "missing from the bundle"),
        (lambda folder: (folder / "eval_data/sub/choice.jsonl").write_text("{oops"), "not JSON"),
        (lambda folder: (folder / "eval_data/sub/choice.jsonl").write_text("\n"), "is empty"),
        (lambda folder: (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\n"), "chance accuracy"),
        (lambda folder: (folder / "eval_meta_data.csv").write_text("x\n1\n"), "chance accuracy"),
        (lambda folder: set_chance(folder, "100"), "in percent, from 0 to below 100"),
        (lambda folder: set_chance(folder, "?"), "in percent, from 0 to below 100"),
        (lambda folder: (folder / "core.yaml").write_text(""), "is no list icl_tasks"),
        (lambda folder: (folder / "core.yaml").write_text("icl_tasks: [{label: choice}]"), "is no list icl_tasks"),
        (lambda folder: (folder / "core.yaml").write_text("{"), "is no list icl_tasks"),
        (lambda folder: (folder / "core.yaml").write_text("icl_tasks: []"), "is no list icl_tasks"),
        (lambda folder: set_task(folder, num_fewshot=[-1]), "is no list icl_tasks"),
        (lambda folder: set_task(folder, num_fewshot=["2"]), "is no list icl_tasks"),
        (lambda folder: set_task(folder, num_fewshot=[0.5]), "is no list icl_tasks"),
        (lambda folder: set_task(folder, dataset_uri=7), "is no list icl_tasks"),
        (lambda folder: set_task(folder, continuation_delimiter=None), "is no list icl_tasks"),
        (lambda folder: double_task(folder), "has two tasks choice"),
        (lambda folder: (folder / "eval_data/sub/choice.jsonl").write_bytes(b"\xff\xfe"), "not UTF-8"),
        (lambda folder: set_choice(folder, '{"query": "a", "choices": ["b", "c"], "gold": true}'), "from 0 to 1"),
        (
            lambda folder: set_choice(folder, '{"query": "a", "choices": ["b", null], "gold": 0}'),
            "at least two options",
        ),
        (lambda folder: set_choice(folder, '{"query": "a", "gold": 0}'), "has no choices with at least two options"),
        (lambda folder: set_choice(folder, '{"query": "a", "choices": ["b"], "gold": 0}'), "at least two options"),
        (lambda folder: set_choice(folder, '{"query": "a", "choices": ["b", "c"], "gold": 2}'), "from 0 to 1"),
        (lambda folder: set_choice(folder, '{"query": "a", "choices": ["b", "c"]}'), "has no gold"),
        (lambda folder: set_choice(folder, '{"choices": ["b", "c"], "gold": 0}'), "has no query"),
        (lambda folder: set_choice(folder, '["a"]'), "has no fields"),
    ],
)
def test_damaged_bundles_are_named(bundle, tmp_path, damage, words):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(bundle, folder)
    damage(folder)
    with pytest.raises(UserError, match=words):
        load_bundle(folder)


def test_a_model_that_computes_no_numbers_gets_no_score(bundle, tiny_model):
    """The first option would win each comparison with NaN."""
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        model.get_output_embeddings().weight[7] = math.nan
    with pytest.raises(UserError, match="logits are not numbers .NaN.: its weights are damaged"):
        core.evaluate_task(model, encode_bytes, load_bundle(bundle)[0])


def test_a_bundle_is_checked_without_reading_it_or_importing_torch(bundle):
    code = f"""
import builtins, sys
from nanochat_hf.evals.bundle import check_bundle
assert [entry["label"] for entry in check_bundle({str(bundle)!r}, ["schema"])] == ["schema"]
assert len(check_bundle({str(bundle)!r})) == 3 and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_unknown_task_label_is_named(bundle):
    with pytest.raises(UserError, match="the bundle has no task nonsense"):
        load_bundle(bundle, labels=["nonsense"])
