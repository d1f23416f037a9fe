"""transformers' own Trainer evaluates the model and keeps its best checkpoint."""

import pytest
import torch
from tiny_models import randomized, tiny_config
from transformers import Trainer, TrainingArguments


class Rows(torch.utils.data.Dataset):
    def __init__(self, seed):
        self.ids = torch.randint(0, 128, (6, 20), generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


@pytest.fixture
def trainer(tmp_path):
    arguments = TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        max_steps=2,
        per_device_train_batch_size=3,
        per_device_eval_batch_size=3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        report_to="none",
        learning_rate=1e-3,
    )
    return Trainer(randomized(tiny_config()), arguments, train_dataset=Rows(1), eval_dataset=Rows(2))


def test_evaluate_and_load_best_model_at_end(trainer):
    before = trainer.evaluate()["eval_loss"]
    ids = trainer.eval_dataset.ids
    with torch.no_grad():
        assert before == pytest.approx(float(trainer.model(input_ids=ids, labels=ids).loss), abs=1e-5)
    trainer.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    best = min(losses[1], losses[2])
    assert trainer.state.best_metric == best == pytest.approx(trainer.evaluate()["eval_loss"], abs=1e-6)
