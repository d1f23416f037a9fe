"""A new model begins as upstream's does: by the spread of every tensor, and by its loss before any training."""

import math

import pytest
import torch

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM

WIDTH, VOCAB = 128, 512
UNIFORM = WIDTH**-0.5  # standard deviation
MODERN = {
    "embed_tokens": 0.8, "lm_head": 0.001, "q_proj": UNIFORM, "k_proj": UNIFORM, "v_proj": UNIFORM, "o_proj": 0.0,
    "up_proj": 0.4 * UNIFORM, "down_proj": 0.0, "ve_gate": 0.02 / 12**0.5, "value_embeds": UNIFORM,
    "smear_gate": 0.02 / 12**0.5,
}  # fmt: skip
CLASSIC = {
    "embed_tokens": 1.0, "lm_head": 0.0, "q_proj": UNIFORM, "k_proj": UNIFORM, "v_proj": UNIFORM, "o_proj": 0.0,
    "up_proj": UNIFORM, "down_proj": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(("preset", "spreads"), [("modern", MODERN), ("classic", CLASSIC)])
@pytest.mark.parametrize("loaded", [False, True], ids=["new", "loaded"])
def test_every_matrix_has_upstreams_spread(preset, spreads, loaded, tmp_path):
    torch.manual_seed(0)
    config = NanochatHFConfig.from_depth(
        2, preset=preset, vocab_size=VOCAB, aspect_ratio=64, head_dim=32, sequence_length=32
    )
    model = NanochatHFForCausalLM(config)
    if loaded:  # what was trained stays, what a checkpoint lacks is made anew
        model.model.layers[0].self_attn.q_proj.weight.data.fill_(7.0)
        weights = {name: tensor for name, tensor in model.state_dict().items() if "down_proj" not in name}
        model.save_pretrained(tmp_path, state_dict=weights)
        model = NanochatHFForCausalLM.from_pretrained(tmp_path)
        assert (model.model.layers[0].self_attn.q_proj.weight == 7.0).all()
        model.model.layers[0].self_attn.q_proj.weight.data.normal_(std=UNIFORM)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            spread = next(value for part, value in spreads.items() if part in name)
            tolerance = 0.4 if "gate" in name else 0.05  # gates have 24 to 48 elements, the others thousands
            assert parameter.detach().float().std().item() == pytest.approx(spread, rel=tolerance), name
    ids = torch.randint(0, VOCAB, (2, 32))
    loss = model(input_ids=ids, shift_labels=ids.roll(-1, 1), use_cache=False).loss
    assert loss.item() == pytest.approx(math.log(VOCAB), abs=0.01)
