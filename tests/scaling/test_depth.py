from dataclasses import replace
from pathlib import Path

import pytest

from nanochat_hf.scaling import backout_bound, depth_dial, fit_batch, fit_dial, lr_scale
from nanochat_hf.settings import read_recipe


def test_horizon_precedence():
    assert depth_dial(12, num_iterations=7, target_flops=1e18, param_data_ratio=8).num_iterations == 7
    by_flops = depth_dial(12, target_flops=1e18, param_data_ratio=8)
    assert by_flops.num_iterations == round(1e18 / (by_flops.flops_per_token * by_flops.total_batch_size))
    assert depth_dial(12, param_data_ratio=8).num_iterations == 1680
    # the length of the run does not move the decay
    assert depth_dial(20, num_iterations=7).weight_decay == depth_dial(20).weight_decay


@pytest.mark.parametrize(
    ("depth", "params", "iterations", "flops"),
    [(12, 185_597_952, 7_080, 3.85e18), (20, 560_988_160, 21_400, 3.92e19), (32, 1_879_048_192, 71_680, 4.54e20)],
)
def test_classic_runs(depth, params, iterations, flops):
    dial = depth_dial(depth, preset="classic", vocab_size=65536)
    assert (dial.params, dial.num_iterations, dial.lr_scale) == (params, iterations, 1.0)
    assert dial.total_flops == pytest.approx(flops, rel=5e-3)


@pytest.mark.parametrize("preset", ["modern", "classic"])
def test_counts_are_those_of_the_model(preset):
    import torch

    from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM

    with torch.device("meta"):
        model = NanochatHFForCausalLM(NanochatHFConfig.from_depth(6, preset=preset, vocab_size=8192))
    counted = depth_dial(6, preset=preset, vocab_size=8192)
    assert sum(p.numel() for p in model.parameters()) == counted.params


@pytest.mark.parametrize("depth", [1, 2, 4, 12, 24])
@pytest.mark.parametrize("vocab_size", [1536, 8192, 32768])
@pytest.mark.parametrize("preset", ["modern", "classic"])
def test_a_batch_trains_the_same_whether_chosen_or_asked_for(depth, vocab_size, preset):
    if preset == "classic" and depth % 2:
        depth += 1
    chosen = depth_dial(depth, vocab_size=vocab_size, preset=preset)
    assert depth_dial(depth, vocab_size=vocab_size, preset=preset, total_batch_size=chosen.total_batch_size) == chosen
    for batch in (2**10, 2**13 - 96, 2**17, 2**19 + 96):
        fitted = chosen.with_batch(batch)
        asked = depth_dial(depth, vocab_size=vocab_size, preset=preset, total_batch_size=batch)
        assert fitted.lr_scale == asked.lr_scale
        assert fitted.weight_decay == pytest.approx(asked.weight_decay, rel=1e-12)


def test_rates_stop_falling_where_upstreams_batches_end():
    assert [lr_scale(2**power) for power in (10, 16, 17, 19, 21)] == [0.5, 0.5, 0.5, 1.0, 2.0]
    assert lr_scale(2**18) == 0.5**0.5 and lr_scale(2**10, "classic") == 1.0
    for ratio in (8, 12, 20):  # so upstream's own runs are not touched
        assert min(depth_dial(depth, param_data_ratio=ratio).total_batch_size for depth in range(1, 33)) == 2**17


@pytest.mark.parametrize(("recipe", "vocab_size", "factor"), [("quickstart", 1536, 0.5), ("smoke", 512, 0.5)])
def test_recipes_keep_their_factor(recipe, vocab_size, factor):
    path = Path(__file__).parents[2] / "training" / "recipes" / f"{recipe}.yaml"
    run = read_recipe(path, "pretrain")
    names = ("aspect_ratio", "head_dim", "window_pattern", "sequence_length", "num_iterations", "total_batch_size")
    assert read_recipe(path, "tokenizer")["vocab_size"] == vocab_size and "lr_scale" not in run
    dial = depth_dial(run["depth"], vocab_size=vocab_size, **{name: run[name] for name in names if name in run})
    assert fit_dial(dial, 1, run["device_batch_size"])[0].lr_scale == factor


@pytest.mark.parametrize("fields", [{}, {"window_pattern": "SL"}, {"preset": "classic"}, {"num_key_value_heads": 1}])
def test_the_shape_is_that_of_the_configuration(fields):
    from nanochat_hf import NanochatHFConfig

    config = NanochatHFConfig.from_depth(6, vocab_size=8192, **fields)
    fields = {name.replace("num_key", "key"): value for name, value in fields.items()}
    shape = depth_dial(6, vocab_size=8192, **fields).shape
    assert (shape.hidden_size, shape.head_dim) == (config.hidden_size, config.head_dim)
    assert (shape.heads, shape.key_value_heads) == (config.num_attention_heads, config.num_key_value_heads)
    full = ["full_attention" if window == 2048 else "sliding_attention" for window in shape.windows]
    assert full == config.layer_types
    assert {window + 1 for window in shape.windows} - {2049} <= {config.sliding_window}


def test_windows_follow_the_longest_input_as_the_models_do():
    from nanochat_hf import NanochatHFConfig

    config = NanochatHFConfig.from_depth(6, vocab_size=8192, sequence_length=4096)
    short = depth_dial(6, vocab_size=8192, sequence_length=512)
    dial = depth_dial(6, vocab_size=8192, sequence_length=512, context_length=4096, target_flops=1e15)
    assert set(dial.shape.windows) == {config.sliding_window - 1, 4096}
    # rows of 512 tokens fill a whole window of 1,024: each of the six layers sees 512 keys, where four saw 128
    more_keys = 6 * 512 - sum(short.shape.windows)
    assert dial.flops_per_token == short.flops_per_token + 12 * config.hidden_size * more_keys
    assert dial.num_iterations == round(1e15 / (dial.flops_per_token * dial.total_batch_size))


def test_any_number_of_processes_gets_a_batch():
    for world in range(1, 17):
        for limit in (1, 3, 8, 32):
            plan = fit_batch(2**18, 2048, world, limit)
            assert 1 <= plan.device_batch_size <= limit
            assert abs(plan.total_batch_size / 2**18 - 1) < 0.13, plan.describe()
    assert fit_batch(2**18, 2048, 8, 32).exact  # upstream's default flags stop here
    assert "nearest" in fit_batch(2**18, 2048, 3, 32).describe()


def test_plan_agrees_with_the_published_run(capsys):
    from nanochat_hf.cli import main as cli

    cli.main("plan --depth 24 --gpus 8 --gpu h100 --mfu 0.594 --param-data-ratio 8".split())
    text = capsys.readouterr().out
    assert "5,568 steps" in text and "2.79e+19 FLOPs" in text and "99 minutes" in text
    assert all(part in text for part in ("weights", "gradients", "optimizer state", "activations", "loss", "$40"))


@pytest.mark.parametrize("preset", ["modern", "classic"])
def test_plan_says_what_its_share_of_the_peak_rests_on(preset):
    from nanochat_hf.scaling.plan import MFU_BY_PRESET, plan

    path, (low, high), source = MFU_BY_PRESET[preset]
    assumed, given = plan(24, preset=preset), plan(24, preset=preset, mfu=high)
    assert "50% MFU (assumed)" in assumed and path in assumed and f"{low:.0%}" in assumed and source in assumed
    assert f"{high:.0%} MFU (as given)" in given and path not in given


@pytest.mark.parametrize(("capacity", "needed"), [(1, 8), (5, 8), (6, 32), (7, 7), (100, 12), (0, 4)])
def test_the_largest_device_batch_is_found_by_trial(capacity, needed):
    """A device whose memory ends beyond `capacity` rows; the answer is never more than a step can use."""
    import torch

    from nanochat_hf.scaling.plan import _try_rows

    class Model(torch.nn.Module):
        def forward(self, input_ids, **_):
            tried.append(len(input_ids))
            if len(input_ids) > capacity:
                raise torch.OutOfMemoryError
            return type("Output", (), {"loss": torch.zeros((), requires_grad=True)})

    tried: list[int] = []
    dial = depth_dial(1, vocab_size=64, sequence_length=16)
    found = _try_rows(dial, 1, torch.device("cpu"), Model(), False, needed)
    assert found == max(1, min(capacity, needed))
    assert len(tried) <= 2 * needed.bit_length()


ASSUMED = {  # recipe: GPUs, kind, share of the peak, rows where the recipe leaves them to trial
    "small-gpu": (1, "rtx 4090", 0.4, 8),
    "classic-d20": (8, "h100", 0.5, None),
    "speedrun": (8, "h100", 0.594, None),
    "d26": (8, "h100", 0.5, None),
    "classic-d32": (8, "h100", 0.51, None),
}


@pytest.mark.parametrize("recipe", ASSUMED)
def test_the_table_of_recipes_is_what_the_plan_says(recipe):
    from nanochat_hf.scaling.plan import table_row

    root = Path(__file__).parents[2]
    path = root / "training" / "recipes" / f"{recipe}.yaml"
    run, vocab_size = read_recipe(path, "pretrain"), read_recipe(path, "tokenizer")["vocab_size"]
    gpus, gpu, mfu, rows = ASSUMED[recipe]
    options = {"preset": run.get("preset", "modern"), "param_data_ratio": run.get("param_data_ratio")}
    dial = depth_dial(run["depth"], vocab_size=vocab_size, **options)
    row = table_row(
        f"`{recipe}`", *fit_dial(dial, gpus, rows or run["device_batch_size"]), gpu, mfu, run.get("fp8", False)
    )
    assert row in (root / "docs" / "pretraining.md").read_text().splitlines()


# What follows is for texts and batches that upstream does not have.
MEGABYTE = {"vocab_size": 2048, "text_tokens": 282_000}  # tokens of 1.2 MB of web text


def test_depth_2_on_a_megabyte_has_sane_steps_and_decay():
    alone = depth_dial(2, vocab_size=2048)
    assert (alone.target_tokens, alone.total_batch_size, alone.num_iterations) == (7_864_464, 65_536, 120)
    assert alone.weight_decay == pytest.approx(0.04 / (0.02 * 0.5))  # it was 13.07: an eighth of a weight per step
    limited = depth_dial(2, **MEGABYTE)
    assert limited.text_limited and limited.total_tokens <= 4 * 282_000
    assert limited.num_iterations >= 200 and limited.total_tokens > 3.9 * 282_000
    assert limited.weight_decay * limited.lr_scale * 0.02 <= 0.04 + 1e-12


@pytest.mark.parametrize("asked", [{"num_iterations": 120}, {"param_data_ratio": 12}, {"target_flops": 1e13}])
def test_a_length_that_was_asked_for_is_not_cut(asked):
    short, enough = depth_dial(2, **MEGABYTE, **asked), depth_dial(2, vocab_size=2048, **asked)
    assert not short.text_limited and short == enough


def test_a_decay_that_was_asked_for_is_not_bounded_and_batches_keep_the_rule():
    assert depth_dial(2, vocab_size=2048, base_weight_decay=0.28).weight_decay == pytest.approx(13.07, abs=0.01)
    for depth in range(1, 27):  # upstream's vocabulary: the bound is never met
        assert depth_dial(depth) == replace(depth_dial(depth, base_weight_decay=0.28), decay_bounded=True)
    smaller = depth_dial(2, vocab_size=2048).with_batch(2**14)
    assert smaller.weight_decay == pytest.approx(4.0)  # by the rule 6.5
    assert depth_dial(2, vocab_size=2048).with_batch(2**19).weight_decay == pytest.approx(2.0)  # full rates


def test_backouts_scalar_is_bounded_only_below_upstreams_batches():
    assert backout_bound(2048) == 0.9 == backout_bound(2**17 - 1)
    assert backout_bound(2**17) is None and backout_bound(2048, "classic") is None


# The preset "small", for short runs.


def test_the_preset_small_is_chosen_for_short_runs_whose_batch_is_free():
    short = {"vocab_size": 8192, "sequence_length": 512, "preset": "auto"}
    for asked in ({"total_tokens": 2_100_000}, {"text_tokens": 10**6}, {"target_flops": 1e13}):
        assert depth_dial(4, **short, **asked).preset == "small", asked
    for asked in (
        {},  # 64 million tokens
        {"total_tokens": 2**26},
        {"num_iterations": 20},  # steps alone keep upstream's batch
        {"total_tokens": 2_100_000, "total_batch_size": 8192},
        {"num_iterations": 257, "total_batch_size": 8192},
    ):
        chosen = depth_dial(4, **short, **asked)
        assert chosen == depth_dial(4, **short | {"preset": "modern"}, **asked), asked
    for depth in range(1, 33):  # so `--depth` alone is upstream's recipe
        assert depth_dial(depth, preset="auto") == depth_dial(depth)


def test_the_batch_of_the_preset_small_grows_with_the_fourth_root_of_the_tokens():
    shape = {"vocab_size": 8192, "sequence_length": 512, "preset": "small"}
    runs = {tokens: depth_dial(4, total_tokens=tokens, **shape) for tokens in (2**17, 2**19, 2**21, 2**23, 2**25)}
    assert [run.total_batch_size for run in runs.values()] == [2**9, 2**11, 2**11, 2**12, 2**12]
    assert all(run.total_tokens == tokens for tokens, run in runs.items())
    assert {run.lr_scale for run in runs.values()} == {0.5}
    assert depth_dial(4, total_tokens=2**17, **shape | {"sequence_length": 2048}).total_batch_size == 2048, "a row"
    fitted = runs[2**21].with_batch(2**13)
    asked = depth_dial(4, **shape | {"preset": "modern"}, total_tokens=2**21, total_batch_size=2**13)
    assert replace(fitted, preset="modern") == asked, "the batch is the only difference"


@pytest.mark.parametrize("preset", ["modern", "small", "auto"])
@pytest.mark.parametrize("length", [{}, {"total_tokens": 1000}, {"num_iterations": 3, "total_batch_size": 64}])
def test_a_ratio_that_leaves_no_token_is_named(preset, length):
    with pytest.raises(ValueError, match="param_data_ratio 1e-06 leaves nothing to train on; raise it"):
        depth_dial(1, preset=preset, vocab_size=64, sequence_length=16, param_data_ratio=1e-6, **length)


@pytest.mark.parametrize(("local", "share"), [("2", 2), (None, 8), ("0", 8), ("odd", 8)])
def test_processes_of_other_machines_take_no_memory_of_this_one(local, share, monkeypatch):
    """Eight processes, two on each machine; where a launcher does not say it, all are on this one."""
    import psutil
    import torch

    from nanochat_hf.scaling.plan import largest_device_batch, memory_plan

    if local is None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    dial = depth_dial(2, vocab_size=512, sequence_length=128, total_batch_size=2**22)
    free = 8 * 2**30
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": free}))

    def needed(rows):
        parts = memory_plan(dial, 8, rows)
        return sum(parts.values()) + parts["activations"] + parts["loss"]

    found = largest_device_batch(dial, 8, torch.device("cpu"), None, False)
    assert needed(found) <= 0.8 * free / share < needed(found + 1)
