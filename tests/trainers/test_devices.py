"""One device per process, and TF32 where the device is a GPU; GPUs are emulated."""

import os

import pytest
import torch
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM, generation
from nanochat_hf.settings import UserError
from nanochat_hf.settings.failures import LAUNCHER
from nanochat_hf.stages.pretrain import PretrainConfig
from nanochat_hf.trainers import mixin, pretraining_setup, stage
from nanochat_hf.trainers.pretraining import NanochatTrainer, OnDevice
from nanochat_hf.trainers.pretraining_setup import PretrainingArguments


@pytest.fixture
def four_gpus(monkeypatch):
    """What torch says on a machine with four GPUs, as far as the arguments of a run ask for it."""
    from accelerate.state import AcceleratorState

    for name, value in (
        ("is_available", True),
        ("device_count", 4),
        ("is_bf16_supported", True),
        ("set_device", None),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    for name in ("WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def started_by_a_launcher(monkeypatch, processes):
    monkeypatch.setenv("WORLD_SIZE", processes)
    for name in LAUNCHER:
        monkeypatch.setenv(name, "0")


def build_trainer(arguments):
    config = NanochatHFConfig.from_depth(1, vocab_size=320, head_dim=16, aspect_ratio=16, sequence_length=16)
    return NanochatTrainer(model=NanochatHFForCausalLM(config), args=arguments, loader=None)


def test_one_process_trains_on_one_of_four_gpus_and_says_how_to_use_all(four_gpus, tmp_path, capsys, monkeypatch):
    plain = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=8)
    assert plain.n_gpu == 4 and plain.train_batch_size == 32  # transformers would use DataParallel
    options = stage.base_arguments(str(tmp_path), save_every=0, save_total_limit=1, seed=1)
    said = capsys.readouterr().err
    assert "training on the first of 4 GPUs" in said and "accelerate launch" in said and "--num_processes 4" in said
    arguments = PretrainingArguments(**options, per_device_train_batch_size=8)
    assert arguments.n_gpu == 1 and arguments.train_batch_size == 8 and arguments.bf16
    assert arguments.device == torch.device("cuda:0") and arguments.parallel_mode is ParallelMode.NOT_PARALLEL
    started_by_a_launcher(monkeypatch, "4")
    stage.warn_of_idle_gpus()
    assert not capsys.readouterr().err


def test_the_chat_stages_use_one_device_too():
    from nanochat_hf.trainers.grpo import RolloutArguments
    from nanochat_hf.trainers.supervised import SupervisedArguments

    assert RolloutArguments.n_gpu is SupervisedArguments.n_gpu is stage.OneDevice.n_gpu


def test_other_arguments_that_lead_to_data_parallel_are_refused(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    arguments._n_gpu = 4
    with pytest.raises(UserError, match="train on 4 GPUs with DataParallel.*accelerate launch"):
        build_trainer(arguments)


def test_tf32_is_allowed_on_gpus_only(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    for device in ("cpu", "mps"):
        generation.allow_tf32(torch.device(device))
    assert asked == []
    generation.allow_tf32(torch.device("cuda", 1))
    assert asked == ["high"]


def test_every_trainer_and_every_loaded_checkpoint_allows_tf32(tmp_path, monkeypatch):
    devices = []
    monkeypatch.setattr(mixin, "allow_tf32", devices.append)
    monkeypatch.setattr(generation.loading, "allow_tf32", devices.append)
    arguments = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
    build_trainer(TrainingArguments(**arguments))
    assert devices == [torch.device("cpu")]
    build_trainer(TrainingArguments(**arguments, tf32=False))
    assert len(devices) == 1  # whoever forbids it is obeyed

    from nanochat_hf import tokenizer

    build_trainer(TrainingArguments(**arguments)).model.save_pretrained(tmp_path)
    tokenizer.train(["a b c"], 265).save_pretrained(tmp_path)
    devices.clear()
    generation.load_checkpoint(tmp_path, device="cpu")
    assert devices == [torch.device("cpu")]


def test_a_batch_is_copied_without_labels():
    """Meta stands in for a GPU. With labels, Trainer would count tokens, which waits for the GPU."""
    batch = dict.fromkeys(("input_ids", "shift_labels", "labels"), torch.zeros(2, 8, dtype=torch.long))
    (copied,) = OnDevice([batch], torch.device("meta"), 1)
    assert {name: tensor.device.type for name, tensor in copied.items()} == dict.fromkeys(
        ("input_ids", "shift_labels"), "meta"
    )


def test_segments_of_memory_may_grow(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    stage.base_arguments(str(tmp_path), save_every=0, save_total_limit=1, seed=1)
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "mine")
    stage.base_arguments(str(tmp_path), save_every=0, save_total_limit=1, seed=1)
    assert os.environ["PYTORCH_ALLOC_CONF"] == "mine"


class Words:
    """As much of a tokenizer as a new model needs."""

    bos_token_id, eos_token_id, pad_token_id = 0, 1, 0

    def __len__(self):
        return 100

    def convert_tokens_to_ids(self, tokens):
        return [1 for _ in tokens]


def test_a_model_is_made_on_the_device_that_trains_it():
    """Meta stands in for a GPU. On a CPU the weights are those of the seed, as without a device."""
    config = PretrainConfig(depth=2, preset="modern", aspect_ratio=16, head_dim=16, sequence_length=32)
    far = pretraining_setup.build_model(config, Words(), torch.device("meta"))
    assert {tensor.device.type for tensor in [*far.parameters(), *far.buffers()]} == {"meta"}
    torch.manual_seed(5)
    near = pretraining_setup.build_model(config, Words(), torch.device("cpu"))
    torch.manual_seed(5)
    plain = NanochatHFForCausalLM(far.config)
    pairs = zip(near.state_dict().values(), plain.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_on_apple_machines_every_stage_uses_the_same_device(tmp_path, monkeypatch):
    """Pretraining, the chat stages, RL's process group, the evaluation and a loaded checkpoint ask one function."""
    import accelerate

    from nanochat_hf.evals import runner
    from nanochat_hf.evals.evaluation_config import EvaluationConfig

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    asked = []
    monkeypatch.setattr(accelerate, "PartialState", lambda cpu: asked.append(cpu))
    started_by_a_launcher(monkeypatch, "2")
    stage.distributed_state()
    runner.start_distributed(EvaluationConfig())
    options = stage.base_arguments(str(tmp_path), save_every=0, save_total_limit=1, seed=1)
    assert generation.pick_device().type == "mps"
    assert asked == [False, False] and options["use_cpu"] is False and options["bf16"] is False
