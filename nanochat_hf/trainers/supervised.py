"""Training on conversations with TRL's `SFTTrainer`: what midtraining and SFT have in common."""

from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PretrainedConfig
from trl import SFTConfig, SFTTrainer

from nanochat_hf.data.packing import ChatPacking
from nanochat_hf.evals.metrics.formulas import bits_per_byte
from nanochat_hf.generation import DEFAULT_CONTEXT_LENGTH
from nanochat_hf.scaling import BatchPlan, fit_batch
from nanochat_hf.settings import UserError
from nanochat_hf.tokenizer import token_byte_lengths
from nanochat_hf.trainers import compilation, disks
from nanochat_hf.trainers.chat_rows import TrainOn, collate, files_of, make_rows, pad_with_empty_rows, stored_rows
from nanochat_hf.trainers.mixin import MuonAdamWMixin
from nanochat_hf.trainers.row_counts import report_left_over
from nanochat_hf.trainers.stage import (
    ChatTrainerMixin,
    OneDevice,
    add_callbacks,
    chat_arguments,
    distributed_state,
    hash_of,
    load_tasks,
    training_method,
)
from nanochat_hf.trainers.stage_settings import SupervisedConfig


class SupervisedArguments(OneDevice, SFTConfig):
    """TRL's `SFTConfig` for one device per process."""


class WithoutMask:
    """Calls the model without the attention mask of a batch from `collate`, which is all ones.

    With a mask, sliding layers make a dense one of [B, 1, T, T]. Without, they take the window as in pretraining.
    """

    def __init__(self, model: Any):
        self.model = model

    def __call__(self, attention_mask: torch.Tensor, **inputs: Any) -> Any:
        return self.model(**inputs)


class PackedRowsTrainer(MuonAdamWMixin, ChatTrainerMixin, SFTTrainer):
    """`SFTTrainer` on packed rows.

    TRL divides the summed loss of a step by the number of trained tokens over all micro-batches and processes (at
    least 1). So every trained token counts the same, and a micro-batch without any adds nothing.

    Args:
        mask_name: suffix of the validation metrics' names; losses over different tokens cannot be compared.
        packing: of the rows. With `"none"`, batches are shortened to their longest conversation.
    """

    def __init__(self, *args, mask_name: str, packing: str = "best_fit", **kwargs):
        self.mask_name = mask_name
        super().__init__(*args, data_collator=partial(collate, shorten=packing == "none"), **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Of our model, its own loss, which computes the head once. Of others TRL's, which also logs the entropy.

        TRL counts tokens by the batch's attention mask; the model does not get it.
        """
        if return_outputs or not hasattr(model, "supervised_loss"):
            return super().compute_loss(WithoutMask(model), inputs, return_outputs, num_items_in_batch)
        outputs = model(
            input_ids=inputs["input_ids"],
            shift_labels=inputs["shift_labels"],
            num_items_in_batch=num_items_in_batch,
        )
        # `num_items_in_batch` counts the tokens of all processes, and the optimizer averages over them.
        counted = self.args.average_tokens_across_devices and num_items_in_batch is not None
        return outputs.loss * (self.accelerator.num_processes if counted else 1)

    @torch.no_grad()
    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Mean loss (nats per token) and bits per byte over the trained tokens of the validation rows."""
        device = self.args.device
        exact = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        bytes_of = torch.as_tensor(token_byte_lengths(self.processing_class)).to(device, exact)
        sums = torch.zeros(4, dtype=exact, device=device)  # nats, tokens, nats of tokens with bytes, bytes
        was_training = self.model.training
        self.model.eval()
        for batch in self.get_eval_dataloader():
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with self.compute_loss_context_manager():
                nats = -WithoutMask(self.model)(**batch, fused_lm_head=True).log_probs.to(
                    exact
                )  # [B, T], 0 where not trained
            targets = batch["shift_labels"]
            sizes = bytes_of[targets.clamp(min=0)] * (targets >= 0)
            sums += torch.stack([nats.sum(), (targets >= 0).sum(), nats[sizes > 0].sum(), sizes.sum()])
        sums = self.accelerator.reduce(sums, reduction="sum").tolist()
        self.model.train(was_training)
        metrics = {
            f"val_loss_{self.mask_name}": sums[0] / max(1.0, sums[1]),
            f"val_bpb_{self.mask_name}": bits_per_byte(sums[2], max(1.0, sums[3])),
        }
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def sequence_length(config: SupervisedConfig, model_config: PretrainedConfig) -> int:
    """Tokens per row. Raises UserError where `max_seq_len` is more than the model's context."""
    longest = getattr(model_config.get_text_config(), "max_position_embeddings", None) or DEFAULT_CONTEXT_LENGTH
    if config.max_seq_len > longest:
        raise UserError(f"max_seq_len {config.max_seq_len} is more than the {longest} tokens the model was built for")
    return config.max_seq_len or longest


def make_trainer(config: SupervisedConfig, model: Any, tokenizer: Any, train_on: TrainOn) -> PackedRowsTrainer:
    """Packs the conversations and builds the trainer on them."""
    length = sequence_length(config, model.config)
    state = distributed_state()
    plan = fit_batch(config.total_batch_size, length, state.num_processes, config.device_batch_size)
    train_rows, val_rows, steps = load_rows(config, tokenizer, length, train_on, plan, state)
    arguments = chat_arguments(config, steps) | {
        "per_device_train_batch_size": plan.device_batch_size,
        "per_device_eval_batch_size": plan.device_batch_size,
        "gradient_accumulation_steps": plan.accumulation_steps,
        "train_sampling_strategy": "sequential",  # the rows are shuffled already
        "dataloader_drop_last": True,
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "eval_strategy": "steps" if val_rows is not None and config.eval_every > 0 else "no",
        "eval_steps": config.eval_every or None,
    }
    if state.is_main_process:
        print(f"{steps:,} steps; {plan.describe()}", flush=True)
    args = SupervisedArguments(**arguments)
    compilation.set_attention(model, config.attention, args.device, args.bf16)
    trainer = PackedRowsTrainer(
        model=model,
        args=args,
        compile_layers=compilation.compiles_layers(config.compile, args.device),
        train_dataset=train_rows,
        eval_dataset=val_rows,
        processing_class=tokenizer,
        schedule=config.schedule(steps),
        **training_method(config, model),
        mask_name=f"{train_on}_tokens",
        packing=config.packing,
    )
    add_callbacks(trainer, config.save_minutes)
    return trainer


def load_rows(
    config: SupervisedConfig, tokenizer: Any, length: int, train_on: TrainOn, plan: BatchPlan, state: Any
) -> tuple[Any, Any, int]:
    """Makes or opens the rows: (training rows, validation rows or None, optimizer steps).

    Raises:
        UserError: the tasks do not fill the rows of one step.
    """
    per_step = plan.device_batch_size * plan.accumulation_steps * plan.world_size
    wanted = config.num_iterations * per_step if config.num_iterations > 0 else None
    folder = Path(config.output_dir)
    settings = {"tokenizer": hash_of(tokenizer), "length": length, "train_on": train_on, "packing": config.packing}
    writes = disks.writes(disks.is_shared(folder))
    packing = cast(ChatPacking, config.packing)

    def train() -> dict:
        return make_rows(
            load_tasks(config.tasks, "train"), tokenizer, length + 1, train_on=train_on, seed=config.seed,
            epochs=None if wanted else config.epochs, num_rows=wanted, packing=packing,
            num_workers=config.num_threads,
        )  # fmt: skip

    def validation() -> dict:
        columns = make_rows(
            load_tasks(config.val_tasks, "validation"), tokenizer, length + 1, train_on=train_on,
            packing=packing, num_workers=config.num_threads, title="packing validation",
        )  # fmt: skip
        return pad_with_empty_rows(columns, plan.device_batch_size * plan.world_size)

    seen = {"tasks": config.tasks, "epochs": config.epochs, "wanted": wanted, "seed": config.seed}
    train_rows = stored_rows(folder, settings | seen | files_of(config.tasks), train, writes)
    val_rows = None
    if config.val_tasks:
        seen = {"tasks": config.val_tasks, "multiple": plan.device_batch_size * plan.world_size}
        val_rows = stored_rows(folder, settings | seen | files_of(config.val_tasks), validation, writes)
    steps = len(train_rows) // per_step
    if not steps:
        raise UserError(
            f"the tasks fill only {len(train_rows)} rows of {length} tokens, fewer than the {per_step} of one step: "
            "lower total_batch_size or raise epochs"
        )
    if state.is_main_process:
        report_left_over(len(train_rows), steps * per_step, "rows", "total_batch_size")
    return train_rows.select(range(steps * per_step)), val_rows, steps
