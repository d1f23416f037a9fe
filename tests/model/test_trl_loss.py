"""TRL's trainers skip our head: they take the base model's states, its weight and `final_logit_softcapping`."""

import copy

import pytest
import torch
from tiny_models import classic_fields, randomized, tiny_config

from nanochat_hf.model.modeling_nanochat_hf import IGNORE_INDEX


@pytest.mark.parametrize("fields", [{}, classic_fields(), {"final_logit_softcapping": None}], ids=str)
def test_fused_loss_is_our_loss(fields, tokens):
    """Values and the gradient of every weight, prompts masked, packed documents, a count handed in."""
    from trl.trainer.utils import add_fused_lm_head

    ours = randomized(tiny_config(**fields))
    fused = copy.deepcopy(ours)
    add_fused_lm_head(fused)
    labels = tokens.clone()
    labels[0, :30], labels[1, 50:], labels[2] = IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX
    positions = torch.cat((torch.arange(40), torch.arange(50))).expand(3, -1)
    for options in ({}, {"position_ids": positions}, {"num_items_in_batch": torch.tensor(77)}):
        expected = ours(tokens, labels=labels, **options).loss
        loss = fused(tokens, labels=labels, fused_lm_head=True, **options).loss
        torch.testing.assert_close(loss, expected, atol=0, rtol=1e-5)
        expected.backward()
        loss.backward()
    for (name, parameter), other in zip(ours.named_parameters(), fused.parameters(), strict=True):
        assert parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(other.grad, parameter.grad, atol=1e-5, rtol=1e-3, msg=name)


def test_fused_log_probabilities_are_our_logits(model, tokens):
    """What RL's ratios are made of."""
    from trl.trainer.utils import add_fused_lm_head

    fused = copy.deepcopy(model)
    add_fused_lm_head(fused, temperature=0.7, outputs=("log_probs", "entropy"))
    with torch.no_grad():
        scores = (model(tokens).logits / 0.7).log_softmax(-1)
        output = fused(tokens, labels=tokens, fused_lm_head=True)
    expected = scores[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(output.log_probs, expected, atol=1e-4, rtol=0)
    entropy = -(scores.exp() * scores).sum(-1)[:, :-1]
    torch.testing.assert_close(output.entropy, entropy, atol=1e-4, rtol=0)
