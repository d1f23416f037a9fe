"""The command itself: training/pretrain.py, with two processes and everything that happens on the way."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat_hf import tokenizer as tokenizers
from nanochat_hf.data.sources import open_documents
from nanochat_hf.settings import UserError, load_run

ROOT = Path(__file__).parents[2]
SHAPE = ["--depth", "2", "--aspect_ratio", "32", "--head_dim", "32", "--sequence_length", "64", "--data", "microworld"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    documents = open_documents("microworld").next_batch(200)
    tokenizers.train(documents, 320).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def core_bundle(tmp_path_factory):
    """One task of three questions, as small as the format allows."""
    folder = tmp_path_factory.mktemp("core")
    (folder / "eval_data").mkdir()
    items = [{"query": f"Is {n} even?", "choices": ["yes", "no"], "gold": n % 2} for n in range(3)]
    (folder / "eval_data" / "even.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / "core.yaml").write_text(
        "icl_tasks:\n- {label: even, dataset_uri: even.jsonl, num_fewshot: [0], icl_task_type: multiple_choice}\n"
    )
    (folder / "eval_meta_data.csv").write_text("Eval Task,Task Category,Random baseline\neven,x,50\n")
    return str(folder)


@pytest.fixture
def script(monkeypatch):
    """Runs the script's main in this process, with the given options."""
    spec = importlib.util.spec_from_file_location("training_script_pretrain_main", ROOT / "training" / "pretrain.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["pretrain.py", *SHAPE, *options])
        module.main()

    return run


@pytest.mark.parametrize("kind", ["plain", "fsdp"])
def test_two_real_processes_by_the_config_file(kind, tokenizer, core_bundle, tmp_path):
    config = (ROOT / "training" / "accelerate_cpu.yaml").read_text()
    if kind == "fsdp":
        config = config.replace(
            "distributed_type: MULTI_GPU", "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}"
        )
    (tmp_path / "config.yaml").write_text(config)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "config.yaml")]
    # Both ways to start the stage.
    command += ["--main_process_port", "0"]
    command += ["training/pretrain.py"] if kind == "plain" else ["-m", "nanochat_hf.stages.pretrain"]
    command += [*SHAPE, "--tokenizer", tokenizer]
    command += ["--output_dir", str(tmp_path), "--num_iterations", "6", "--total_batch_size", "512"]
    command += ["--auto_device_batch", "true", "--eval_every", "3", "--eval_tokens", "512", "--save_every", "3"]
    command += ["--sample_every", "6", "--core_every", "6", "--core_bundle", core_bundle, "--log_every", "2"]
    command += ["--bigram_tokens", "3000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "batch of 512 tokens = 2 processes × 1 micro-batches × 4 rows × 64" in done.stdout
    assert done.stdout.count("first step done") == done.stdout.count("\nbigrams of") == 1  # only one process speaks
    assert "step 6: 'The capital of France is" in done.stdout and "step 6: CORE" in done.stdout
    run = load_run(tmp_path)
    assert run["environment"]["world_size"] == 2 and "torch" in run["environment"]["versions"]
    assert run["config"]["total_batch_size"] == 512 and run["config"]["device_batch_size"] == 4  # as it was found
    assert {"val_bpb", "core", "loss", "tokens_per_second"} <= run["metrics"].keys()
    assert [row["step"] for row in run["history"] if "loss" in row] == [1, 2, 4, 6]
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.architectures == ["NanochatHFForCausalLM"]
    states = sorted(path.name for path in (tmp_path / "checkpoint-6").glob("optimizer-*"))
    assert states == ["optimizer-00001-of-00002.safetensors", "optimizer-00002-of-00002.safetensors"]


KILLED_AT_STEP_7 = """
import os, runpy, sys, torch
from nanochat_hf.trainers.callbacks import TrainingProgress
torch.set_num_threads(int(sys.argv.pop(1)))
def on_step_end(self, args, state, control, **_):
    if state.global_step == 7:
        os.kill(os.getpid(), 9)
TrainingProgress.on_step_end = on_step_end
sys.argv[0] = "training/pretrain.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_after_sigkill_the_loader_goes_on_from_its_buffer(script, tokenizer, tmp_path):
    """The command with its real data: documents wait tokenized and packed ahead, and none is lost or read twice."""
    import torch
    from safetensors.torch import load_file

    options = ["--tokenizer", tokenizer, "--num_iterations", "9", "--total_batch_size", "256", "--save_every", "3"]
    options += ["--log_every", "1", "--eval_every", "9", "--eval_tokens", "256"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    script(*options, "--output_dir", str(whole))
    command = [sys.executable, "-c", KILLED_AT_STEP_7, str(torch.get_num_threads()), *SHAPE, *options]
    done = subprocess.run([*command, "--output_dir", str(killed)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == -9, done.stderr[-2000:]
    assert (killed / "checkpoint-6").exists() and not load_run(killed)
    script(*options, "--output_dir", str(killed))
    curves = [
        [(row["step"], row["loss"]) for row in load_run(run)["history"] if "loss" in row] for run in (whole, killed)
    ]
    assert curves[0] == curves[1] and [step for step, _ in curves[0]] == list(range(1, 10))
    assert load_run(whole)["metrics"]["val_bpb"] == load_run(killed)["metrics"]["val_bpb"]
    weights = [load_file(run / "model.safetensors") for run in (whole, killed)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_dry_run_draws_the_schedules_and_trains_nothing(script, tokenizer, tmp_path, capsys):
    script("--tokenizer", tokenizer, "--output_dir", str(tmp_path), "--dry_run", "true", "--param_data_ratio", "8")
    assert "Muon weight decay" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["schedules.png"]
    assert (tmp_path / "schedules.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "used"),
    [
        ([], "0.500"),  # this vocabulary's batch is 2^16
        (["--total_batch_size", "65536"], "0.500"),
        (["--total_batch_size", "8192"], "0.500"),
        (["--total_batch_size", "524288"], "1.000"),
        (["--total_batch_size", "8192", "--lr_scale", "0.125"], "0.125"),
        (["--total_batch_size", "8192", "--preset", "classic"], "1.000"),
    ],
)
def test_rates_follow_the_batch_down_to_131072_tokens(script, tokenizer, options, used, capsys, tmp_path):
    script("--tokenizer", tokenizer, "--output_dir", str(tmp_path), "--dry_run", "--preset", "modern", *options)
    assert f"learning rates × {used}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said", "batch"),
    [
        (["--total_tokens", "65536"], "small, for 65,536 tokens (--preset modern has upstream's batch)\n", 256),
        (["--total_tokens", "65536", "--preset", "small"], "small\n", 256),
        (["--num_iterations", "9", "--total_batch_size", "8192"], "modern\n", 8192),
        (["--num_iterations", "9"], "modern\n", 65536),
        (["--total_tokens", "134217728"], "modern\n", 65536),
    ],
)
def test_short_runs_choose_their_preset_and_say_so(script, tokenizer, options, said, batch, capsys, tmp_path):
    script("--tokenizer", tokenizer, "--output_dir", str(tmp_path), "--dry_run", *options)
    output = capsys.readouterr().out
    assert f"\npreset: {said}" in output and f"batch of {batch:,} tokens" in output
    assert "learning rates × 0.500\n" in output


def test_what_cannot_work_is_said_at_once(script, tokenizer, tmp_path):
    with pytest.raises(UserError, match="--core_every needs tasks; give --core_bundle core"):
        script("--tokenizer", tokenizer, "--output_dir", str(tmp_path), "--core_every", "5")
    with pytest.raises(UserError, match="make one with nanochat-hf tokenizer"):
        script("--output_dir", str(tmp_path))
    for options, words in (
        (["--param_data_ratio", "1e-9"], "--param_data_ratio is a number from 1e-06 to 1,000,000"),
        (["--head_dim", "33"], "head_dim must be even"),
        (["--num_key_value_heads", "7"], "not a multiple of num_key_value_heads 7"),
        (["--window_pattern", "banana"], "a window pattern holds only the letters S"),
        (["--context_length", "8"], "--context_length 8 is shorter than the rows of 64 tokens"),
        (["--aspect_ratio", "50000000"], "--aspect_ratio is a whole number from 1 to 4096"),
    ):
        with pytest.raises(UserError, match=words):
            script("--tokenizer", tokenizer, "--output_dir", str(tmp_path / "refused"), *options)
    with pytest.raises(UserError, match="--attention no_such"):
        script("--tokenizer", tokenizer, "--output_dir", str(tmp_path), "--attention", "no_such")


def test_a_tokenizer_of_another_family_is_refused(script, tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordPiece({"[UNK]": 0, "<s>": 1, "a": 2}, unk_token="[UNK]"))
    folder = str(tmp_path / "words")
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>").save_pretrained(folder)
    with pytest.raises(UserError, match="is of another kind .it is a WordPiece.*; make one with nanochat-hf tok"):
        script("--tokenizer", folder, "--output_dir", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_eight_bits_need_their_hardware_and_train_the_same_model(script, tokenizer, tmp_path, monkeypatch):
    """Emulated on the CPU: trained through the script, evaluated in full precision, saved as any other model."""
    from functools import partial

    from transformers import AutoModelForCausalLM

    from nanochat_hf.trainers import fp8

    options = ["--tokenizer", tokenizer, "--output_dir", str(tmp_path), "--aspect_ratio", "64", "--fp8", "true"]
    options += ["--num_iterations", "2", "--total_batch_size", "256", "--eval_every", "2", "--eval_tokens", "256"]
    with pytest.raises(UserError, match="compute capability 8.9"):
        script(*options)
    converted = []
    monkeypatch.setattr(fp8, "require_hardware", lambda device: None)
    emulated = partial(fp8.convert, emulate=True)
    monkeypatch.setattr(fp8, "convert", lambda model: converted.append(emulated(model)))
    script(*options)
    assert converted == [13]
    assert load_run(tmp_path)["metrics"]["val_bpb"] > 0
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path).lm_head).__name__ == "Linear"
