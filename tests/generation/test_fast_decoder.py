"""The fast decoder against the model's own forward, token by token."""

import functools

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import StaticCache

from nanochat_hf.generation import generate_with_tools
from nanochat_hf.generation.decoding import pad_left
from nanochat_hf.generation.fast_decoder import DecoderWeights, FastDecoder, Projection, compiled_step
from nanochat_hf.generation.forward_decoder import ForwardDecoder
from nanochat_hf.model.loss_nanochat_hf import soft_cap

PROMPTS = [[256, 5, 6, 7], [256, *range(40)], [256]]


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[1:2], PROMPTS[2:]], ids=["ragged", "long", "one token"])
@pytest.mark.parametrize(
    ("fields", "dtype", "tolerance"),
    [
        ({}, torch.float32, 1e-4),
        ({"num_key_value_heads": 2}, torch.float32, 1e-4),
        ({"preset": "classic"}, torch.float32, 1e-4),
        ({"smear": False, "value_embeddings": False}, torch.float32, 1e-4),
        ({"backout": False, "residual_scalars": False, "final_logit_softcapping": None}, torch.float32, 1e-3),
        ({"sliding_window": 500}, torch.float32, 1e-4),
        ({}, torch.bfloat16, 0.6),  # logits up to 15 from 8 bits of mantissa
    ],
    ids=str,
)
@torch.inference_mode()
def test_steps_equal_forward(fields, dtype, tolerance, prompts, make_model):
    model = make_model(**fields).to(dtype)
    assert FastDecoder.supports(model)
    ids, mask = pad_left(prompts, 0, "cpu")
    rows = [0] * 2 + list(range(len(prompts)))
    fast, plain = FastDecoder(model, ids.shape[1] + 30), ForwardDecoder(model)
    generator = torch.Generator().manual_seed(0)
    ours, theirs = fast.prefill(ids, mask, rows), plain.prefill(ids, mask, rows)
    for turn in range(30):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)
        if turn in (7, 15) and len(ours) > 2:  # rows leave, the longest prompt among the last
            keep = torch.arange(1, len(ours))
            fast.select(keep)
            plain.select(keep)
            ours, theirs = ours[keep], theirs[keep]
        tokens = torch.randint(0, 256, (len(ours),), generator=generator)
        ours, theirs = soft_cap(fast.step(tokens), fast.soft_cap), plain.step(tokens)


@pytest.fixture
def prepare_bf16():
    """Prepares a model as a Trainer does with `bf16=True`: fp32 weights, and a forward under autocast."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    yield accelerator.prepare_model
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("under", ["accelerate", "autocast"])
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[1:2]], ids=["ragged", "shared"])
@pytest.mark.parametrize("fields", [{}, {"num_key_value_heads": 2}, {"preset": "classic"}], ids=str)
def test_steps_of_a_mixed_precision_model_are_in_its_compute_dtype(fields, prompts, under, make_model, prepare_bf16):
    """fp32 weights under autocast: prefill and steps are in bf16, logits in fp32, and the weights stay as they are."""
    model, copy = make_model(**fields), make_model(**fields).to(torch.bfloat16)
    model = prepare_bf16(model) if under == "accelerate" else model
    assert FastDecoder.supports(model)
    ids, mask = pad_left(prompts, 0, "cpu")
    rows = [0] * 2 + list(range(len(prompts)))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=under == "autocast"):
        decoders = [FastDecoder(model, ids.shape[1] + 12), ForwardDecoder(model)]
        fast, plain = (decoder.prefill(ids, mask, rows) for decoder in decoders)
        assert torch.equal(fast, plain)
        for turn in range(12):
            tokens = (torch.arange(len(rows)) * 7 + turn * 13) % 256
            fast, plain = (decoder.step(tokens) for decoder in decoders)
            fast = soft_cap(fast, decoders[0].soft_cap)
            assert fast.dtype == torch.float32
            torch.testing.assert_close(fast, plain, atol=0.6, rtol=0)  # logits up to 15 from 8 bits of mantissa
    assert {tensor.dtype for tensor in decoders[0].keys + decoders[0].values} == {torch.bfloat16}
    assert decoders[0].weights.head.weight.equal(copy.lm_head.weight)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_weights_are_copied_once_per_call_and_anew_after_a_policy_update(
    make_model, tokenizer, prepare_bf16, monkeypatch
):
    made, prepare = [], DecoderWeights.__init__
    monkeypatch.setattr(DecoderWeights, "__init__", lambda self, *given: made.append(self) or prepare(self, *given))
    model = prepare_bf16(make_model())
    options = dict(max_new_tokens=4, temperature=0, batch_size=1, tool=None)
    before = generate_with_tools(model, tokenizer, PROMPTS, **options)
    assert len(made) == 1 and made[0].dtype == torch.bfloat16
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.roll(5, 0))
    after = generate_with_tools(model, tokenizer, PROMPTS, **options)
    assert len(made) == 2 and made[1].head.weight.equal(model.lm_head.weight.to(torch.bfloat16))
    assert [group[0].token_ids for group in after] != [group[0].token_ids for group in before]


@torch.inference_mode()
def test_a_model_without_mixed_precision_shares_its_weights_with_the_decoder(model):
    weights = DecoderWeights(model, torch.float32)
    layer = model.model.layers[0]
    assert weights.head.weight.data_ptr() == model.lm_head.weight.data_ptr()
    assert weights.layers[0]["down"].weight.data_ptr() == layer.mlp.down_proj.weight.data_ptr()


@torch.inference_mode()
def test_sliding_layers_stop_growing(model):
    ids, mask = pad_left(PROMPTS, 0, "cpu")
    steps = FastDecoder(model, 160)
    steps.prefill(ids, mask, [0, 1, 2])
    window = model.config.sliding_window
    sizes = {kind: keys.shape[2] for kind, keys in zip(model.config.layer_types, steps.keys, strict=True)}
    assert sizes == {"sliding_attention": window, "full_attention": 160}


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("out", [64, 7])
@pytest.mark.parametrize("vendor", ["GenuineIntel", "Intel without MKL", "AuthenticAMD", ""])
def test_a_projection_is_a_linear_map_on_any_processor_and_number_of_threads(monkeypatch, threads, out, vendor):
    if vendor == "Intel without MKL":
        monkeypatch.setattr("nanochat_hf.generation.fast_decoder.mkl_can_pack", lambda _: False)
        vendor = "GenuineIntel"
    monkeypatch.setattr("nanochat_hf.generation.fast_decoder.processor_vendor", lambda: vendor)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        weight = torch.randn(out, 48)
        projection = Projection(weight)
        for rows in (1, 2, 5, 16, 40, 3):
            for x in (torch.randn(rows, 48), torch.randn(48, rows).t()):  # a projection leaves its rows strided
                torch.testing.assert_close(projection(x), torch.nn.functional.linear(x, weight))
                torch.testing.assert_close(projection(x, projection(x)), 2 * torch.nn.functional.linear(x, weight))
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def test_samples_of_one_prompt_hold_its_cache_once(model):
    ids, mask = pad_left(PROMPTS[1:2], 0, "cpu")
    steps = FastDecoder(model, 160)
    steps.prefill(ids, mask, [0] * 5)
    window, prompt = model.config.sliding_window, ids.shape[1]
    own = {kind: keys.shape for kind, keys in zip(model.config.layer_types, steps.keys, strict=True)}
    heads, width = model.config.num_key_value_heads, model.config.head_dim
    assert own["full_attention"] == (5, heads, 160 - prompt, width)
    assert own["sliding_attention"] == (5, heads, window, width)
    assert {len(keys) for keys, _ in steps.prefixes} == {heads}  # no dimension of rows


@pytest.mark.parametrize(
    "fields", [{}, {"num_key_value_heads": 2}, {"sliding_window": 500}, {"preset": "classic"}], ids=str
)
@torch.inference_mode()
def test_rows_of_several_prompts_share_each_prompts_cache(fields, make_model):
    model = make_model(**fields)
    ids, mask = pad_left(PROMPTS, 0, "cpu")
    rows = [1, 0, 2, 0, 1, 1, 2, 0, 0, 2]
    fast, plain = FastDecoder(model, ids.shape[1] + 40), ForwardDecoder(model)
    ours, theirs = fast.prefill(ids, mask, rows), plain.prefill(ids, mask, rows)
    heads = fast.config.num_key_value_heads
    # Rows leave: one of a prompt, then all of a prompt, then all but one row, the last but one prompt among them.
    leave = {5: [0], 10: [1, 2, 5, 6], 20: [0, 1, 3, 4]}
    alive = rows
    for turn in range(40):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
        if turn in leave:
            keep = torch.tensor([row for row in range(len(ours)) if row not in leave[turn]])
            alive = [alive[row] for row in keep]
            fast.select(keep)
            plain.select(keep)
            ours, theirs = ours[keep], theirs[keep]
        assert {len(keys) for keys, _ in fast.prefixes} == {len(set(alive)) * heads}
        tokens = (torch.arange(len(ours)) * 7 + turn * 13) % 256
        ours, theirs = soft_cap(fast.step(tokens), fast.soft_cap), plain.step(tokens)
    assert alive == [1]


@torch.inference_mode()
def test_a_single_row_and_several_make_one_graph_each(make_model, monkeypatch):
    """For any weights, lengths, rows and capacities. `fullgraph` raises an error if the graph breaks."""
    # Compiled steps never use transposed weights; without them both add up in the same order.
    monkeypatch.setattr("nanochat_hf.generation.fast_decoder.processor_vendor", lambda: "")
    graphs = []
    backend = lambda graph, _: graphs.append(graph) or graph.forward  # noqa: E731
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    compiled_step.cache_clear()
    for rows, capacity, length, made in ((1, 90, 5, 1), (1, 120, 33, 1), (5, 100, 7, 2), (3, 130, 20, 2)):
        model = make_model()
        for scalars in (model.model.resid_lambdas, model.model.smear_lambda, model.model.backout_lambda):
            torch.nn.init.uniform_(scalars, 0.2, 1.2)
        ids = torch.randint(0, 256, (1, length))
        compiled, plain = FastDecoder(model, capacity, compiled=True), FastDecoder(model, capacity)
        for steps in (compiled, plain):
            steps.prefill(ids, torch.ones_like(ids), [0] * rows)
        for _ in range(6):
            tokens = torch.randint(0, 256, (rows,))
            torch.testing.assert_close(compiled.step(tokens), plain.step(tokens), atol=1e-5, rtol=0)
        assert len(graphs) == made
    compiled_step.cache_clear()


def test_changed_models_take_the_forward_decoder(make_model):
    model = make_model()
    assert FastDecoder.supports(model)
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: None)
    assert not FastDecoder.supports(model)
    adapted = make_model()
    adapted.model.layers[0].self_attn.q_proj = torch.nn.Linear(64, 64, bias=False)
    assert not FastDecoder.supports(adapted)
    assert not FastDecoder.supports(torch.nn.Module.__new__(torch.nn.Module))


@torch.inference_mode()
def test_static_steps_share_a_compiled_graph(make_model):
    """With a static cache all steps have the same shapes, and run one graph without breaks.

    It is made twice: transformers' sliding layer counts tokens in Python, and at the second step the compiler sees
    that this number changes.
    """
    model = make_model()
    prompt = torch.tensor([[256, *range(20)], [256, *range(30, 50)]])
    options = dict(max_new_tokens=40, min_new_tokens=40, do_sample=False, pad_token_id=0)
    expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[:, 21:]

    graphs = []
    forward = torch.compile(
        lambda **inputs: model(**inputs).logits[:, -1].argmax(-1, keepdim=True),
        backend=lambda graph, _: graphs.append(graph) or graph.forward,
        fullgraph=True,
    )
    cache = StaticCache(config=model.config, max_cache_len=64)
    tokens = [model(input_ids=prompt, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1, keepdim=True)]
    for column in range(21, 60):
        position_ids = torch.full((2, 1), column)
        step = dict(input_ids=tokens[-1], position_ids=position_ids, past_key_values=cache, use_cache=True)
        tokens.append(forward(**step))
    assert torch.equal(torch.cat(tokens, dim=1), expected)
    assert len(graphs) == 2
