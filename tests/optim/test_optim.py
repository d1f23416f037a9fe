import os

import pytest
import torch
import torch.multiprocessing as mp

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.optim import Schedule, build_optimizer, kernels, parameter_roles
from nanochat_hf.optim.buckets import Ranks
from nanochat_hf.optim.muon_adamw import LEAST_STACK, index_pieces


def toy(preset="modern"):
    torch.manual_seed(0)
    config = NanochatHFConfig.from_depth(
        4, vocab_size=67, head_dim=16, aspect_ratio=16, sequence_length=32, preset=preset
    )
    model = NanochatHFForCausalLM(config)
    for module in model.modules():  # behind upstream's zeros, gradients are noise, and Muon makes it large
        if isinstance(module, torch.nn.Linear):
            module.reset_parameters()
    return model


def train(model, optimizer, steps, rank=0, world=1, first=0, before_update=lambda: None):
    for step in range(first, first + steps):
        ids = torch.randint(0, 67, (6, 33), generator=torch.Generator().manual_seed(step))[rank::world]
        loss = model(input_ids=ids[:, :-1], shift_labels=ids[:, 1:]).loss
        optimizer.arm()
        loss.backward()
        before_update()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("preset", ["modern", "classic"])
def test_every_parameter_is_in_exactly_one_group(preset):
    model = toy(preset)
    expected = {"model.embed_tokens.weight": "embedding", "lm_head.weight": "head"}
    if preset == "modern":
        expected |= {"model.resid_lambdas": "resid_lambdas", "model.x0_lambdas": "x0_lambdas"}
        expected |= {"model.smear_gate.weight": "smear", "model.smear_lambda": "smear"}
        expected |= {"model.backout_lambda": "backout"}
        expected |= {f"model.value_embeds.{layer}.weight": "value_embedding" for layer in (1, 3)}
        expected |= {f"model.layers.{layer}.self_attn.ve_gate.weight": "matrix" for layer in (1, 3)}
    for layer in range(4):
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
            expected[f"model.layers.{layer}.{name}.weight"] = "matrix"
        for name in ("mlp.up_proj", "mlp.down_proj"):
            expected[f"model.layers.{layer}.{name}.weight"] = "matrix"
    assert parameter_roles(model) == expected
    groups = build_optimizer(model).param_groups
    assert sorted(name for group in groups for name in group["param_names"]) == sorted(expected)
    trained = sorted(id(p) for group in groups for p in group["params"])
    assert trained == sorted(id(p) for p in model.parameters())


def test_an_unknown_parameter_is_named():
    model = toy()
    model.odd = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="odd"):
        build_optimizer(model)


@pytest.mark.parametrize("shape", [(64, 16), (16, 64), (32, 32)])
def test_orthogonalized_updates(shape):
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    x = kernels.orthogonalize(kernels.equilibrate_rows(x), kernels.POLAR_EXPRESS, 1.01, 1e-6)
    singular = torch.linalg.svdvals(x)
    assert singular.quantile(0.1) > 0.7 and singular.max() < 1.25  # a square one has a singular value near zero
    norms = kernels.renormalize(x).norm(dim=(-2, -1))
    torch.testing.assert_close(norms, torch.full((3,), min(shape) ** 0.5))


@pytest.mark.parametrize("shape", [(2, 96, 24), (2, 24, 96), (24, 48)])
@pytest.mark.parametrize("smallest", [0, -7], ids=["random", "singular values down to 1e-7"])
def test_iterating_on_the_gram_matrix_changes_roundings_only(shape, smallest):
    """In fp64 the polynomials are applied to the matrix itself, in fp32 to its Gram matrix."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    if smallest:
        left, values, right = torch.linalg.svd(x, full_matrices=False)
        x = left * torch.logspace(0, smallest, values.shape[-1], dtype=torch.float64) @ right
    expected = kernels.orthogonalize(x, kernels.POLAR_EXPRESS, 1.01, 1e-6)
    found = kernels.orthogonalize(x.float(), kernels.POLAR_EXPRESS, 1.01, 1e-6)
    assert (found - expected).norm() / expected.norm() < (2e-3 if smallest else 1e-4)


def test_classic_muon_is_pytorchs():
    weights = torch.randn(24, 16)
    mine, theirs = weights.clone()[None], torch.nn.Parameter(weights.clone())
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.0, momentum=0.95)
    buffer = torch.zeros_like(mine)
    for _ in range(3):
        grad = torch.randn(24, 16)
        theirs.grad = grad.clone()
        reference.step()
        kernels.muon_classic(mine, grad.clone()[None], buffer, 0.95, 0.02 * 1.5**0.5, 0.0, torch.bfloat16)
    torch.testing.assert_close(mine[0], theirs.detach(), atol=2e-3, rtol=0)


def test_schedule_at_its_corners():
    schedule = Schedule(1000)
    assert schedule.lr_factor(0) == 1 / 40 and schedule.lr_factor(39) == schedule.lr_factor(350) == 1.0
    assert schedule.lr_factor(675) == pytest.approx(0.525) and schedule.lr_factor(1000) == pytest.approx(0.05)
    assert schedule.momentum(0) == 0.85 and schedule.momentum(200) == pytest.approx(0.91)
    assert schedule.momentum(1000) == pytest.approx(0.90)
    assert schedule.decay_factor(0) == 1 and schedule.decay_factor(500) == pytest.approx(0.5)
    assert schedule.decay_factor(1000) == pytest.approx(0)
    classic = Schedule.classic(1000)
    assert [classic.lr_factor(step) for step in (0, 800, 900, 1000)] == pytest.approx([1, 1, 0.5, 0])
    assert classic.momentum(300) == classic.momentum(1000) == 0.95


def test_state_goes_through_a_state_dict():
    model = toy()
    optimizer = build_optimizer(model)
    train(model, optimizer, 2)
    twin = toy()
    twin.load_state_dict(model.state_dict())
    other = build_optimizer(twin)
    other.buckets  # noqa: B018 (made on first use)
    other.load_state_dict(optimizer.state_dict())
    train(model, optimizer, 2, first=2)
    train(twin, other, 2, first=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("world", [2, 8, 16])
@pytest.mark.parametrize("depth", [6, 12, 24])
def test_a_call_of_the_kernel_works_on_a_stack(depth, world):
    """Not on single matrices, which are many small kernels on a GPU."""
    with torch.device("meta"):
        model = NanochatHFForCausalLM(NanochatHFConfig.from_depth(depth))
        optimizer = build_optimizer(model)
        for group in optimizer.param_groups:
            if group["kind"] != "muon":
                continue
            buckets = optimizer._make_buckets(group, Ranks(1, world), first=0)
            rounds = [bucket.rounds for bucket in buckets]
            assert all(count >= LEAST_STACK for count in rounds[:-1]), rounds  # the last one has what is left
            assert sum(len(bucket.params) for bucket in buckets) == len(group["params"])


def _count_bytes(world):
    """Replaces the collectives by ones that count; bytes sent a rank by the usual ring algorithms."""
    counted = {}
    share = (world - 1) / world
    factors = {"reduce_scatter_tensor": share, "all_gather_into_tensor": share, "all_reduce": 2 * share}
    for name, factor in {**factors, "reduce": share, "broadcast": share}.items():
        original = getattr(torch.distributed, name)

        def counting(*tensors, name=name, factor=factor, function=original, **options):
            size = max(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
            counted.setdefault(name, []).append(factor * size)
            return function(*tensors, **options)

        setattr(torch.distributed, name, counting)
    return counted


def _rank(rank, world, port, queue):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    model = toy()
    optimizer = build_optimizer(model)
    optimizer.overlap_backward()
    counted, early = _count_bytes(world), []
    train(model, optimizer, 3, rank, world, before_update=lambda: early.append(len(counted["reduce_scatter_tensor"])))
    reductions = len(counted["reduce_scatter_tensor"]) // 3
    assert early == [reductions * (step + 1) for step in range(3)]  # all under way before the backward pass was over
    sent = sum(sum(sizes) for sizes in counted.values()) / 3
    replicated = 8 * sum(p.numel() for p in model.parameters()) * (world - 1) / world  # DDP with Muon on every rank
    assert 0.9 * replicated < sent < 1.1 * replicated, (sent, replicated)
    assert max(counted["all_reduce"]) < 0.05 * replicated  # only what does not divide; never all gradients
    pieces = {piece.key: piece.tensor.numpy().copy() for piece in optimizer.state_pieces()}
    queue.put((rank, {name: p.detach().numpy().copy() for name, p in model.named_parameters()}, pieces))
    torch.distributed.destroy_process_group()


def test_ranks_share_the_step_and_the_state(world=3):
    """Odd shapes on purpose: 67 rows, and 16 or 4 matrices, do not divide by the ranks."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_rank, args=(rank, world, port, queue)) for rank in range(world)]
    for worker in workers:
        worker.start()
    found = sorted((queue.get(timeout=240) for _ in workers), key=lambda item: item[0])
    for worker in workers:
        worker.join()
    model = toy()
    alone = build_optimizer(model)
    train(model, alone, 3)
    for name, parameter in model.named_parameters():
        for _, weights, _ in found:
            # not element by element: AdamW gives a gradient that is all rounding a full step, in either direction
            apart = torch.from_numpy(weights[name]) - parameter.detach()
            assert apart.norm() < 3e-3 * parameter.norm(), name
    for _, weights, _ in found[1:]:
        assert all((weights[name] == found[0][1][name]).all() for name in weights)

    merged = {key: torch.from_numpy(tensor) for _, _, pieces in found for key, tensor in pieces.items()}
    sizes = [sum(piece.size for piece in pieces.values()) for _, _, pieces in found]
    assert max(sizes) < 0.75 * sum(piece.tensor.numel() for piece in alone.state_pieces())
    twin = build_optimizer(toy())
    twin.load_state_pieces(index_pieces({key: lambda tensor=tensor: tensor for key, tensor in merged.items()}))
    for mine, theirs in zip(alone.state_pieces(), twin.state_pieces(), strict=True):
        if mine.state == "momentum_buffer":
            torch.testing.assert_close(mine.tensor, theirs.tensor, atol=1e-3, rtol=1e-2)


def test_norms_by_group():
    model = toy()
    optimizer = build_optimizer(model)
    optimizer.measure_norms = True
    ids = torch.arange(66).view(2, 33)
    model(input_ids=ids[:, :-1], shift_labels=ids[:, 1:]).loss.backward()
    head, before = model.lm_head.weight, model.lm_head.weight.detach().clone()
    gradient = head.grad.norm().item()
    optimizer.step()
    assert optimizer.norms["grad_norm/head"] == pytest.approx(gradient, rel=1e-5)
    assert optimizer.norms["update_norm/head"] == pytest.approx((head.detach() - before).norm().item(), rel=1e-4)
    assert len(optimizer.norms) == 2 * len(optimizer.param_groups)


@pytest.mark.parametrize("variant", ["modern", "classic"])
def test_new_hyper_parameters_do_not_compile_again(variant, monkeypatch):
    """Rates, momentum and decay change every step; graphs are at most one for each shape of matrices."""
    import functools

    from torch._dynamo.testing import CompileCounter

    from nanochat_hf.optim import MuonAdamW, apply_schedule, build_param_groups, muon_adamw, set_learning_rates

    counter = CompileCounter()
    torch._dynamo.reset()  # the compiler counts variants per function, over all tests of a process
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    muon_adamw._compiled.cache_clear()
    model, twin = toy(), toy()
    optimizer = MuonAdamW(build_param_groups(model, variant=variant), compile=True)
    plain = MuonAdamW(build_param_groups(twin, variant=variant), compile=False)
    schedule = Schedule.of(variant, 6, warmup_steps=2, momentum_warmup_steps=3)
    frames = []
    for step in range(6):
        for one in (optimizer, plain):
            set_learning_rates(one, schedule.lr_factor(step))
            apply_schedule(one, schedule, step)
        # gradients of neither model: rounding would come back through them, and Muon and AdamW make it large
        for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=torch.Generator().manual_seed(step))
            theirs.grad = mine.grad.clone()
        optimizer.step()
        plain.step()
        frames.append(counter.frame_count)
    muon_adamw._compiled.cache_clear()
    shapes = sum(group["kind"] == "muon" for group in optimizer.param_groups)
    assert frames == frames[:1] * 6 and frames[0] <= shapes
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert (mine - theirs).norm() < 1e-4 * theirs.norm()


def test_onednn_is_for_plain_kernels_on_cpus_only(monkeypatch):
    """Inductor fails where this setting of torch's differs from the older one for all devices."""
    from nanochat_hf.model import products_nanochat_hf
    from nanochat_hf.optim import MuonAdamW, build_param_groups, muon_adamw

    def setting(*_, matmul_dtype):
        return torch.backends.mkldnn.matmul.fp32_precision

    monkeypatch.setattr(products_nanochat_hf, "onednn_is_better", lambda: True)
    monkeypatch.setattr(kernels, "muon_modern", setting)
    monkeypatch.setattr(torch, "compile", lambda kernel, **_: kernel)
    muon_adamw._compiled.cache_clear()
    before, found = torch.backends.mkldnn.matmul.fp32_precision, {}
    for device, compiled in (("cpu", False), ("cpu", True), ("cuda", False), ("cuda", True)):
        optimizer = MuonAdamW(build_param_groups(toy()), compile=compiled)
        found[device, compiled] = optimizer._muon_kernel("modern", torch.device(device), update_only=False)()
    muon_adamw._compiled.cache_clear()
    assert found.pop(("cpu", False)) == "bf16" and set(found.values()) == {before}


def test_rates_follow_the_batch_but_for_smear_and_backout():
    from nanochat_hf.optim import peak_rates

    for scale in (0.125, 1.0, 2**0.5):
        rates = peak_rates("modern", scale, scalar_lr=None, embedding_lr=0.6)
        assert rates["smear_lr"] == rates["backout_lr"] == 0.2
        assert rates["matrix_lr"] == pytest.approx(0.02 * scale) and rates["scalar_lr"] == pytest.approx(0.5 * scale)
        assert rates["embedding_lr"] == pytest.approx(0.6 * scale)
        assert rates["value_embedding_lr"] == pytest.approx(0.3 * scale), "half of the embedding's"
    assert peak_rates("classic", 0.125, smear_lr=0.1)["smear_lr"] == 0.1


def test_embedding_and_head_that_are_fitted_to_bigrams_have_rates_of_their_own():
    from nanochat_hf.optim import peak_rates

    plain, fitted = (peak_rates("small", 0.5, fitted=fitted) for fitted in (False, True))
    changed = {name for name in plain if plain[name] != fitted[name]}
    assert changed == {"embedding_lr", "unembedding_lr", "backout_lr"}
    assert fitted["embedding_lr"] < plain["embedding_lr"] / 10 and fitted["backout_lr"] == 0.02
    assert peak_rates("small", 0.5, fitted=True, embedding_lr=0.2)["embedding_lr"] == 0.1, "what is asked for counts"


@pytest.mark.parametrize("muon", [True, False])
def test_fine_tuning_groups_go_by_meaning_for_any_architecture(muon):
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    from nanochat_hf.optim import MuonAdamW, fine_tuning_groups

    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2))
    for model, matrices, outside in (
        (llama, ("_proj",), ("embed_tokens", "lm_head", "norm")),
        (gpt2, ("c_attn.weight", "c_proj.weight", "c_fc.weight"), ("wte", "wpe", "ln_", "bias")),
    ):
        groups = fine_tuning_groups(model, 1e-4, muon=muon)
        found = {name: group for group in groups for name, _ in group["params"]}
        assert found.keys() == dict(model.named_parameters()).keys()
        inside = {name for name, group in found.items() if group["name"].startswith("matri")}
        assert inside and all(any(part in name for part in matrices) for name in inside)
        assert all(any(part in name for part in outside) for name in found.keys() - inside)
        assert all((found[name]["kind"] == "muon") == muon for name in inside)
        optimizer, before = MuonAdamW(groups), {name: p.clone() for name, p in model.named_parameters()}
        model(input_ids=torch.arange(16)[None], labels=torch.arange(16)[None]).loss.backward()
        optimizer.step()
        # An entry's update is about as large with Muon as AdamW's usual ones: 0.2 of the rate.
        for name in inside if muon else ():
            step = (dict(model.named_parameters())[name] - before[name]).square().mean().sqrt().item()
            assert 0.5 * 0.2e-4 < step < 2 * 0.2e-4, name


def test_backouts_scalar_stops_at_its_bound_and_turns_back():
    """Its gradient is set by hand: it rises for six steps, then it falls. Without a bound it would pass 1."""

    def values(**options):
        model = toy()
        optimizer = build_optimizer(model, **options)
        seen = []
        for step in range(12):
            model.model.backout_lambda.grad = torch.tensor([-1.0 if step < 6 else 1.0])
            optimizer.step()
            seen.append(model.model.backout_lambda.item())
        return seen

    free, bounded = values(), values(backout_max=0.9)
    assert max(free) > 1.2 and max(bounded) == pytest.approx(0.9)
    assert bounded[:3] == free[:3], "below the bound nothing changes"
    assert bounded[-1] < 0.8


def test_past_one_backouts_scalar_flips_every_position():
    """Why there is a bound: at depth 2 the middle state is the last one, x - βx, of which the norm keeps the sign."""
    model = NanochatHFForCausalLM(
        NanochatHFConfig.from_depth(2, vocab_size=67, head_dim=16, aspect_ratio=16, sequence_length=32)
    )
    ids = torch.arange(32)[None]
    states = []
    for value in (0.2, 0.9, 1.018):
        torch.nn.init.constant_(model.model.backout_lambda, value)
        states.append(model.model(ids).last_hidden_state)
    assert torch.allclose(states[0], states[1], atol=1e-4) and torch.allclose(states[0], -states[2], atol=1e-3)
