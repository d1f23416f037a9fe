import pytest

from nanochat_hf.scaling import depth_dial, fit_batch


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
    from pathlib import Path

    from nanochat_hf.scaling import fit_dial
    from nanochat_hf.scaling.plan import table_row
    from nanochat_hf.settings import read_recipe

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
