"""A pretraining run of seconds on arithmetic rows, for the tests to start, kill and resume as real processes.

    python pretrain_toy.py OUTPUT STEPS ROWS ACCUMULATION \
        [step=N:kill|kill_in_save|term|nan|spike|full_disk|bad_file|evaluation[@RANK]]

Rank 0 ends with one line of JSON: world size, losses and a sum over the weights.
"""

import errno
import json
import os
import signal
import sys

import torch
from transformers import TrainerCallback, TrainingArguments, set_seed

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.data.loader import make_batch
from nanochat_hf.optim import Schedule
from nanochat_hf.settings import UserError, run_main
from nanochat_hf.trainers import checkpoints
from nanochat_hf.trainers.callbacks import StopOnSignal
from nanochat_hf.trainers.fsdp import is_sharded
from nanochat_hf.trainers.pretraining import NanochatTrainer

LENGTH = 32


class Rows:
    """Row k is an arithmetic sequence seeded by k; ranks take turns, so any world size sees the same rows per step."""

    sequence_length = LENGTH

    def __init__(self, rank: int, world_size: int, rows: int):
        self.rank, self.world_size, self.rows, self.position = rank, world_size, rows, 0
        self.is_broken = False

    def __iter__(self):
        return self

    def __next__(self):
        if self.is_broken:
            raise UserError("cannot read rows.parquet: it is damaged; delete it")
        end = self.position + self.rows * self.world_size
        numbers = [k for k in range(self.position, end) if k % self.world_size == self.rank]
        self.position = end
        starts = [torch.randint(0, 40, (1,), generator=torch.Generator().manual_seed(k)) for k in numbers]
        rows = torch.stack(
            [(start + torch.arange(LENGTH + 1) * (1 + k % 3)) % 64 for k, start in zip(numbers, starts, strict=True)]
        )
        return make_batch(rows.numpy())

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, states):
        self.position = states[0]["position"]


def say(line: str) -> None:
    """Writes a line at once: where output is unbuffered, `print` writes the line and its end apart, and ranks mix."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Mishap(TrainerCallback):
    """What `order` says happens after its step, on all ranks or on the named one."""

    def __init__(self, order: str | None, rank: int, loader: Rows):
        self.loader = loader
        self.step, self.kind = (int(order[5:].split(":")[0]), order.split(":")[1]) if order else (-1, "")
        self.kind, _, only = self.kind.partition("@")
        if only and int(only) != rank:
            self.step = -1

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        mesh = f" on {tuple(model.lm_head.weight.device_mesh.shape)}" if is_sharded(model) else ""
        say(f"sharded: {is_sharded(model)}{mesh}")
        if not is_sharded(model):
            say(f"first weights: {sum(p.double().sum().item() for p in model.parameters())}")

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            if self.kind == "nan":
                model.lm_head.weight.data.fill_(float("nan"))
            elif self.kind == "spike":
                model.lm_head.weight.data.mul_(-50)
            elif self.kind == "full_disk":
                checkpoints.save_optimizer = disk_is_full
            elif self.kind == "bad_file":
                self.loader.is_broken = True
            elif self.kind == "evaluation":
                raise ZeroDivisionError("no examples here")
            elif self.kind == "kill_in_save":
                checkpoints.seal = lambda _: os.kill(os.getpid(), signal.SIGKILL)
            else:
                os.kill(os.getpid(), signal.SIGKILL if self.kind == "kill" else signal.SIGTERM)


def disk_is_full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def count_reductions():
    """Counts how often FSDP2 reduces the gradients of a group of parameters."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group

    reduce, counted = _fsdp_param_group.foreach_reduce, []

    def counting(*arguments, **options):
        counted.append(1)
        return reduce(*arguments, **options)

    _fsdp_param_group.foreach_reduce = counting
    return counted


def main():
    output, steps, rows, accumulation = sys.argv[1], *map(int, sys.argv[2:5])
    torch.set_num_threads(1)
    arguments = TrainingArguments(
        output_dir=output, max_steps=steps, per_device_train_batch_size=rows, gradient_accumulation_steps=accumulation,
        use_cpu=True, logging_steps=1, save_steps=3, save_total_limit=2, ignore_data_skip=True, disable_tqdm=True,
        remove_unused_columns=False, report_to="none", max_grad_norm=0.0, logging_nan_inf_filter=False,
    )  # fmt: skip
    set_seed(1 + arguments.process_index)  # the first process's weights count
    config = NanochatHFConfig.from_depth(3, vocab_size=64, head_dim=16, aspect_ratio=16, sequence_length=LENGTH)
    model = NanochatHFForCausalLM(config)
    for module in model.modules():  # behind upstream's zeros, gradients are noise, and Muon makes it large
        if isinstance(module, torch.nn.Linear):
            module.reset_parameters()
    stop = StopOnSignal(every=1)
    loader = Rows(arguments.process_index, arguments.world_size, rows)
    order = sys.argv[5] if len(sys.argv) > 5 else None
    trainer = NanochatTrainer(
        model=model,
        args=arguments,
        loader=loader,
        schedule=Schedule(steps, warmup_steps=2),
        spike_threshold=2.0,
        callbacks=[Mishap(order, arguments.process_index, loader), stop],
    )
    trainer.log_norms, reductions = True, count_reductions()
    trainer.train(resume_from_checkpoint=True)
    if stop.received:
        sys.exit(143)
    if arguments.process_index == 0:
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        weights = sum(p.double().sum().item() for p in trainer.model.parameters())
        facts = {"world": trainer.accelerator.num_processes, "losses": losses, "weights": weights}
        facts["reductions"] = len(reductions)
        facts["norms"] = trainer.muon_adamw.norms
        facts["wrapped"] = trainer.model_wrapped is not trainer.model
        facts["parameters"] = sum(p.numel() for p in trainer.model.parameters())
        say(json.dumps(facts))


if __name__ == "__main__":
    run_main(main)
