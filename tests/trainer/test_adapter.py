"""LoRA layers against autograd, against formulas written out here, and against peft; attaching and detaching."""
from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hotlora.trainer.adapter import Adapter
from hotlora.trainer.frozen import borrowed
from hotlora.trainer.lora_layer import lora_conv2d, lora_linear


def random(*shape, dtype=torch.float64, grad=False, seed=0):
    x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))
    return x.to(dtype).requires_grad_(grad)


class Attention(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])

    def forward(self, x):
        return x + self.to_out[0](F.scaled_dot_product_attention(self.to_q(x), self.to_k(x), self.to_v(x)))


class Denoiser(nn.Module):
    """Layers named as in diffusers, with convolutions of several geometries."""

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(2, 6, 3, padding=1)
        self.down = nn.Conv2d(6, 6, 3, stride=2, padding=1)
        self.dilated = nn.Conv2d(6, 6, (3, 1), padding=(2, 0), dilation=(2, 1), bias=False)
        self.proj_in = nn.Conv2d(6, 6, 1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.attn1, self.attn2 = Attention(), Attention()
        self.time = nn.Linear(6, 6)

    def forward(self, x):
        x = self.grouped(self.proj_in(self.dilated(self.down(self.conv_in(x)))))
        x = x.flatten(2).transpose(1, 2)
        return self.attn2(self.attn1(x)) + self.time(x)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.v_proj, self.fc1 = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 8)
        self.fused = nn.MultiheadAttention(4, 2)

    def forward(self, x):
        return self.fc1(self.q_proj(x) * self.v_proj(x))


PICTURE = random(2, 2, 8, 8, dtype=torch.float32)


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return Denoiser().requires_grad_(False).eval()


def make(model, entries=None, learned=True, seed=0, **settings):
    """An adapter with made-up weights, as if it had learned something."""
    adapter = Adapter.create({"unet": model}, {"unet": entries}, **{"rank": 2, "alpha": 3.0, "seed": seed, **settings})
    if learned:
        for number, layer in enumerate(adapter.layers.values()):
            layer.up.data = random(*layer.up.shape, dtype=torch.float32, seed=number + 100 * seed)
            if layer.dora_scale is not None:
                layer.dora_scale.data *= 1 + 0.3 * random(*layer.dora_scale.shape, dtype=torch.float32, seed=number).tanh()
    return adapter


def per_output(model, adapter):
    """The same matrices with PEFT's DoRA, as a file of it has them."""
    weights = adapter.weights()
    for number, ((_, path), entry) in enumerate(weights.items()):
        rows = model.get_submodule(path).weight.flatten(1).norm(dim=1)
        entry["dora_scale"] = (rows * (1 + 0.3 * random(len(rows), dtype=torch.float32, seed=number).tanh())).view(-1, *[1] * (entry["down"].ndim - 1))
    return Adapter.from_weights({"unet": model}, weights)


def merged(model, adapter, multiplier=1.0):
    """A copy of the model with the change worked out from the matrices and added to its weights, float64."""
    model = copy.deepcopy(model).double()
    for (_, path), entry in adapter.weights().items():
        layer = model.get_submodule(path)
        down, up = entry["down"].double(), entry["up"].double()
        change = torch.einsum("or,r...->o...", up.reshape(up.shape[:2]), down) * entry["alpha"] / down.shape[0]
        if "dora_scale" in entry:
            whole = layer.weight.data + change
            kept = 1 if entry["dora_scale"].shape[0] == 1 else 0
            length = whole.pow(2).sum(dim=[d for d in range(whole.dim()) if d != kept], keepdim=True).sqrt()
            change = entry["dora_scale"].double() * whole / length - layer.weight.data
        layer.weight.data += multiplier * change
    return model


@pytest.mark.parametrize("with_weight", [True, False])
def test_gradients_of_the_linear_layer_are_right(with_weight):
    x, down, up = random(2, 3, 5, grad=True), random(2, 5, grad=True), random(4, 2, grad=True)
    held = (random(4, 5, seed=1), random(4)) if with_weight else (None, None)
    base = F.linear(x, *held) if with_weight else 0
    torch.testing.assert_close(lora_linear(x, down, up, 0.7, *held), base + 0.7 * x @ down.T @ up.T)
    assert torch.autograd.gradcheck(lambda *a: lora_linear(*a, 0.7, *held), (x, down, up))
    turned = lambda x, down, up: lora_linear(x.transpose(0, 1), down, up, 0.7, *held)  # noqa: E731  not contiguous
    assert torch.autograd.gradcheck(turned, (x, down, up))


def test_only_the_input_and_the_low_rank_product_are_kept():
    x, down, up, weight = random(7, 5, grad=True), random(2, 5, grad=True), random(4, 2, grad=True), random(4, 5, grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        lora_linear(x, down, up, 1.0, weight)
    assert len(kept) == 4 and {x.data_ptr(), down.data_ptr(), up.data_ptr()} < set(kept) and weight.data_ptr() not in kept


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("kernel, geometry", [(3, (1, 1, 1)), (3, (2, (0, 1), 1)), (3, ((1, 2), 2, (2, 1))), (1, (1, 0, 1))])
def test_gradients_of_the_convolution_are_right(layout, kernel, geometry):
    x, down, up = random(2, 5, 6, 7, grad=True), random(2, 5, kernel, kernel, grad=True), random(4, 2, 1, 1, grad=True)
    held = random(4, 5, kernel, kernel, seed=1), random(4)
    stride, padding, dilation = geometry
    laid = lambda x, down, up: lora_conv2d(x.contiguous(memory_format=layout), down, up, 0.7, *held, *geometry)  # noqa: E731
    expected = F.conv2d(x, *held, stride, padding, dilation) + 0.7 * F.conv2d(F.conv2d(x, down, None, stride, padding, dilation), up)
    torch.testing.assert_close(laid(x, down, up), expected)
    assert torch.autograd.gradcheck(laid, (x, down, up))


def test_only_the_input_and_the_low_rank_convolution_are_kept():
    x, down, up, weight = random(2, 5, 4, 4, grad=True), random(2, 5, 3, 3, grad=True), random(4, 2, 1, 1, grad=True), random(4, 5, 3, 3, grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        lora_conv2d(x, down, up, 1.0, weight, None, 1, 1)
    assert len(kept) == 4 and {x.data_ptr(), down.data_ptr(), up.data_ptr()} < set(kept) and weight.data_ptr() not in kept


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("needed", [(False, False, True), (False, True, False), (True, False, False)])
def test_only_what_needs_a_gradient_gets_one(kind, needed):
    sides = () if kind == "linear" else (3, 3)
    given = random(7, 5, *sides), random(2, 5, *(1 for _ in sides)), random(4, 2, *(1 for _ in sides))
    for x, grad in zip(given, needed):
        x.requires_grad_(grad)
    y = (lora_linear if kind == "linear" else lora_conv2d)(*given, 1.0, random(4, 5, *(1 for _ in sides)))
    y.sum().backward()
    assert [x.grad is not None for x in given] == list(needed)


@pytest.mark.parametrize("settings", [{}, {"rslora": True}, {"dora": True}, {"conv_rank": 3, "conv_alpha": 2.0},
                                      {"conv_rank": 3, "dora": True, "rslora": True}], ids=str)
@pytest.mark.parametrize("multiplier", [1.0, 0.4])
@pytest.mark.parametrize("per", ["input", "output"])
def test_the_output_is_that_of_merged_weights(unet, settings, multiplier, per):
    adapter = make(unet, **settings)
    if per == "output":
        if "dora" not in settings:
            pytest.skip("of DoRA alone")
        adapter = per_output(unet, adapter)
    adapter.set_multiplier(unet=multiplier)
    with adapter.attached({"unet": unet}):
        y = unet(PICTURE)
        with borrowed(unet):
            torch.testing.assert_close(unet(PICTURE), y)
    torch.testing.assert_close(y.double(), merged(unet, adapter, multiplier)(PICTURE.double()), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(y, unet(PICTURE), atol=1e-2)


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("dora", [False, True])
def test_gradients_of_attached_layers_are_those_of_the_formula(kind, dora):
    torch.manual_seed(0)
    layer = (nn.Linear(5, 4) if kind == "linear" else nn.Conv2d(3, 4, 3, stride=2, padding=1)).double().requires_grad_(False)
    x = random(2, 3, 5, 5, grad=True)
    adapter = make(nn.ModuleDict({"to_q": layer}), ["to_q"], dora=dora, rank=2, alpha=1.0).double()
    lora = adapter.layers["unet", "to_q"]
    leaves = [x, *lora.parameters()]
    with adapter.attached({"unet": nn.ModuleDict({"to_q": layer})}):
        y = layer(x)
        ours = torch.autograd.grad(y.square().sum(), leaves)
    change = 0.5 * torch.einsum("or,r...->o...", lora.up.reshape(4, 2), lora.down)
    weight = layer.weight + change
    if dora:  # the norm is a constant for the gradient: DoRA, section 4.3
        weight = lora.dora_scale * weight / weight.detach().transpose(0, 1).flatten(1).norm(dim=1).view(lora.dora_scale.shape)
    plain = F.linear(x, weight, layer.bias) if kind == "linear" else F.conv2d(x, weight, layer.bias, 2, 1)
    torch.testing.assert_close(y, plain)
    for a, b in zip(ours, torch.autograd.grad(plain.square().sum(), leaves)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("settings", [(), ("rslora",), ("dora",), ("conv",), ("conv", "dora")], ids=str)
def test_outputs_and_gradients_are_those_of_peft(unet, settings):
    peft = pytest.importorskip("peft")
    # not the dilated convolution: peft's lora_A leaves the dilation out, and its output does not fit
    names = ["to_q", "to_v", "to_out.0"] + ["down", "proj_in"] * ("conv" in settings)
    adapter = make(unet, names, **{name: True for name in ("rslora", "dora") if name in settings})
    adapter = per_output(unet, adapter) if "dora" in settings else adapter
    options = {f"use_{name}": True for name in ("rslora", "dora") if name in settings}
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=names, **options)
    theirs = peft.inject_adapter_in_model(config, copy.deepcopy(unet)).eval()
    pairs = []
    for (_, path), ours in adapter.layers.items():
        layer = theirs.get_submodule(path)
        pairs += [(ours.down, layer.lora_A["default"].weight), (ours.up, layer.lora_B["default"].weight)]
        if ours.dora_scale is not None:
            pairs.append((ours.dora_scale, layer.lora_magnitude_vector["default"].weight))
    for ours, their in pairs:
        their.data = ours.data.clone().view(their.shape)
    with borrowed(unet), adapter.attached({"unet": unet}):
        y = unet(PICTURE)
        y.square().mean().backward()
    expected = theirs(PICTURE)
    expected.square().mean().backward()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert len(pairs) == (3 if "dora" in settings else 2) * len(adapter.layers)
    for ours, their in pairs:
        torch.testing.assert_close(ours.grad.flatten(), their.grad.flatten(), rtol=1e-3, atol=1e-5)


def test_dropout_drops_from_the_lora_alone_and_in_training_alone(unet):
    adapter = make(unet, ["to_out"], dropout=0.5)
    layer, lora = unet.attn1.to_out[0], adapter.layers["unet", "attn1.to_out.0"]
    x = random(3, 6, dtype=torch.float32)
    adapter.attach({"unet": unet})
    torch.manual_seed(7)
    y = layer(x)
    torch.manual_seed(7)
    dropped = F.dropout(x, 0.5)
    assert (dropped == 0).any()
    torch.testing.assert_close(y, F.linear(x, layer.weight, layer.bias) + 1.5 * dropped @ lora.down.T @ lora.up.T)
    adapter.eval()
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias) + 1.5 * x @ lora.down.T @ lora.up.T)


@pytest.mark.parametrize("settings", [{}, {"conv_rank": 2}, {"dora": True, "conv_rank": 2, "dropout": 0.2}], ids=str)
def test_a_new_adapter_changes_nothing(unet, settings):
    y = unet(PICTURE)
    with make(unet, learned=False, **settings).attached({"unet": unet}):
        assert torch.equal(unet(PICTURE), y)


def test_the_start_depends_on_seed_and_layer_alone(unet):
    whole, part = make(unet, learned=False), make(unet, ["to_v"], learned=False)
    for key, layer in part.layers.items():
        assert torch.equal(layer.down, whole.layers[key].down)
    downs = [layer.down for layer in whole.layers.values()]
    assert not any(torch.equal(a, b) for n, a in enumerate(downs) for b in downs[:n])
    assert not torch.equal(make(unet, seed=1).layers["unet", "attn1.to_q"].down, downs[0])
    wide = Adapter.create({"unet": nn.ModuleDict({"to_q": nn.Linear(100, 3)})}, {"unet": None}, rank=64, alpha=1)
    spread = wide.layers["unet", "to_q"].down
    assert spread.abs().max() <= 0.1 and abs(spread.std().item() - 0.1 / math.sqrt(3)) < 0.002


def test_after_detach_everything_is_bit_identical(unet):
    host_forward = unet.attn1.to_k.__dict__["forward"] = lambda x: 2 * F.linear(x, unet.attn1.to_k.weight)
    tree, keys, y = [n for n, _ in unet.named_modules()], list(unet.state_dict()), unet(PICTURE)
    forwards = {name: part.__dict__.get("forward") for name, part in unet.named_modules()}
    adapter = make(unet, dora=True, conv_rank=2)
    with pytest.raises(KeyboardInterrupt), adapter.attached({"unet": unet}):
        assert [n for n, _ in unet.named_modules()] == tree and list(unet.state_dict()) == keys
        assert not torch.equal(unet(PICTURE), y)
        raise KeyboardInterrupt
    adapter.detach()
    assert {name: part.__dict__.get("forward") for name, part in unet.named_modules()} == forwards
    assert unet.attn1.to_k.forward is host_forward and torch.equal(unet(PICTURE), y)


@pytest.mark.parametrize("first_off", [0, 1])
def test_adapters_add_up_and_come_off_in_any_order(unet, first_off):
    adapters = make(unet, ["to_q", "to_out"]), make(unet, ["to_out", "to_v"], seed=1)
    left = adapters[1 - first_off]
    y = unet(PICTURE)
    both, one = merged(merged(unet, adapters[0]), adapters[1])(PICTURE.double()), merged(unet, left)(PICTURE.double())
    for adapter in adapters:
        adapter.attach({"unet": unet})
    torch.testing.assert_close(unet(PICTURE).double(), both, rtol=1e-4, atol=1e-4)
    adapters[first_off].detach()
    torch.testing.assert_close(unet(PICTURE).double(), one, rtol=1e-4, atol=1e-4)
    left.detach()
    assert torch.equal(unet(PICTURE), y) and not any("forward" in part.__dict__ for part in unet.modules())


def test_a_forward_that_somebody_put_on_top_is_not_thrown_away(unet):
    adapter = make(unet, ["to_q"])
    adapter.attach({"unet": unet})
    inner = unet.attn2.to_q.forward
    unet.attn2.to_q.forward = on_top = lambda x: inner(x)
    with pytest.raises(RuntimeError, match="replaced"):
        adapter.detach()
    assert unet.attn2.to_q.forward is on_top
    unet.attn2.to_q.forward = inner
    adapter.detach()
    assert not any("forward" in part.__dict__ for part in unet.modules())


def test_multipliers_of_text_encoder_and_denoiser(unet):
    parts = {"unet": unet, "te1": Encoder().requires_grad_(False)}
    adapter = Adapter.create(parts, {"unet": None, "te1": ["q_proj"]}, rank=1, alpha=1)
    for layer in adapter.layers.values():
        nn.init.ones_(layer.up)
    x = random(3, 4, dtype=torch.float32)
    plain = unet(PICTURE), parts["te1"](x)
    with adapter.attached(parts):
        for te, weight in ((0, 0.7), (0.7, 0), (0, 0), (1, 1)):
            adapter.set_multiplier(te=te, unet=weight)
            assert torch.equal(unet(PICTURE), plain[0]) == (weight == 0)
            assert torch.equal(parts["te1"](x), plain[1]) == (te == 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_trains_on_inference_tensors_of_any_dtype(unet, dtype):
    linears = [part for part in unet.modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
    for part in linears:  # what can be represented, so that both models have the same weights
        part.weight.data = part.weight.data.to(dtype).float()
    adapter, twin = make(unet, conv_rank=1, dora=True), make(unet, conv_rank=1, dora=True)
    with twin.attached({"unet": unet}):
        expected = unet(PICTURE)
        expected.square().mean().backward()
    with torch.inference_mode():
        for part in linears:
            part.weight = nn.Parameter(part.weight.to(dtype), requires_grad=False)
    with borrowed(unet), adapter.attached({"unet": unet}):
        y = unet(PICTURE)
        y.square().mean().backward()
    torch.testing.assert_close(y, expected)
    for ours, theirs in zip(adapter.parameters(), twin.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    assert all(part.weight.is_inference() and part.weight.dtype == dtype for part in linears)


def test_under_autocast_and_in_half_models_the_adapter_keeps_float32_gradients(unet):
    adapter = make(unet, conv_rank=1)

    def gradients():
        y = unet(PICTURE.to(unet.time.weight.dtype))
        adapter.zero_grad()
        y.float().square().mean().backward()
        assert y.dtype == torch.bfloat16 and all(p.grad.dtype == torch.float32 for p in adapter.parameters())
        return torch.cat([p.grad.flatten() for p in adapter.parameters()])

    with borrowed(unet), adapter.attached({"unet": unet}):
        unet(PICTURE).square().mean().backward()
        exact = torch.cat([p.grad.flatten() for p in adapter.parameters()])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = gradients()
    unet.bfloat16()
    with borrowed(unet), adapter.attached({"unet": unet}):
        half = gradients()
    for found in (mixed, half):
        assert F.cosine_similarity(found, exact, dim=0) > 0.98


@pytest.mark.parametrize("settings", [{}, {"dora": True, "conv_rank": 1}], ids=str)
def test_pictures_can_be_drawn_in_inference_mode_and_steps_follow(unet, settings):
    adapter = make(unet, **settings)
    with adapter.attached({"unet": unet}):
        y = unet(PICTURE).detach()
        with torch.inference_mode():
            drawn, picture = unet(PICTURE), PICTURE.clone()
            assert torch.equal(drawn, y)
        with borrowed(unet):  # what a host hands over can itself be an inference tensor
            unet(picture).sum().backward()
    assert all(p.grad is not None for p in adapter.parameters())


def test_dora_says_why_it_cannot_have_packed_weights(unet):
    unet.time.weight = None
    with pytest.raises(ValueError, match="turn dora off"):
        make(unet, ["time"], dora=True)
    assert make(unet, ["time"]).layers["unet", "time"].down.shape == (2, 6)


def test_layers_of_a_host_are_known_by_what_they_have():
    class HostLinear(nn.Module):  # as in Forge: no nn.Linear, its own forward, here with a twist
        def __init__(self):
            super().__init__()
            self.in_features, self.out_features = 4, 3
            self.weight, self.bias = nn.Parameter(random(3, 4, dtype=torch.float32), requires_grad=False), None

        def forward(self, x, gain=1.0):
            return gain * F.linear(x, self.weight)

    model = nn.ModuleDict({"to_q": HostLinear()})
    adapter = make(model, ["to_q"])
    lora, x = adapter.layers["unet", "to_q"], random(2, 4, dtype=torch.float32)
    with adapter.attached({"unet": model}):
        y = model["to_q"](x, gain=2.0)
    torch.testing.assert_close(y, 2 * x @ model["to_q"].weight.T + 1.5 * x @ lora.down.T @ lora.up.T)


def test_parameter_groups():
    parts = {"unet": Denoiser(), "te": Encoder()}
    adapter = Adapter.create(parts, {"unet": None, "te": None}, rank=1, alpha=1, dora=True)
    plain = {group["name"]: group for group in adapter.parameter_groups(1e-4)}
    assert {name: group["lr"] for name, group in plain.items()} == {"unet": 1e-4, "te": 1e-4}
    split = {group["name"]: group for group in adapter.parameter_groups(1e-4, text_encoder_lr=1e-5, lora_plus_ratio=16)}
    rates = {"unet": 1e-4, "unet_up": 1.6e-3, "te": 1e-5, "te_up": 1.6e-4}
    assert {name: group["lr"] for name, group in split.items()} == pytest.approx(rates)
    ups = [layer.up for (component, _), layer in adapter.layers.items() if component == "te"]
    assert [id(p) for p in split["te_up"]["params"]] == [id(p) for p in ups]
    for groups in (plain, split):
        assert sorted(id(p) for g in groups.values() for p in g["params"]) == sorted(id(p) for p in adapter.parameters())


def test_weights_go_out_and_come_back(unet):
    adapter = make(unet, conv_rank=1, dora=True, rslora=True)
    again = Adapter.from_weights({"unet": unet}, adapter.weights())
    with adapter.attached({"unet": unet}):
        y = unet(PICTURE)
    with again.attached({"unet": unet}):
        assert torch.equal(unet(PICTURE), y)
    again.load_state_dict(make(unet, conv_rank=1, dora=True, seed=1).state_dict())
    assert not torch.equal(again.layers["unet", "down"].up, adapter.layers["unet", "down"].up)


def test_weights_with_ranks_and_alphas_of_their_own(unet):
    # a file can hold a linear layer as a 1x1 convolution and the other way round
    half = {"down": random(5, 6, 1, 1).half(), "up": random(6, 5, 1, 1).half()}
    flat = {"down": random(1, 6), "up": random(6, 1), "alpha": 8}
    adapter = Adapter.from_weights({"unet": unet}, {("unet", "time"): half, ("unet", "proj_in"): flat})
    assert list(adapter.layers) == [("unet", "proj_in"), ("unet", "time")], "in the base's order"
    assert [(layer.rank, layer.scale) for layer in adapter.layers.values()] == [(1, 8.0), (5, 1.0)]
    with adapter.attached({"unet": unet}):
        y = unet(PICTURE)
    torch.testing.assert_close(y.double(), merged(unet, adapter)(PICTURE.double()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path, entry, complaint", [
    ("attn9.to_q", dict(down=(2, 6), up=(6, 2)), "no layer for 1 of 1 .*attn9.to_q"),
    ("attn1.to_q", dict(down=(2, 7), up=(6, 2)), r"\(2, 7\) and \(6, 2\), the base needs \(2, 6\)"),
    ("attn1.to_q", dict(down=(2, 6), up=(6, 3)), "another base"),
    ("attn1.to_q", dict(down=(2, 6), up=(2, 6)), "another base"),
    ("attn1.to_q", dict(down=(12,), up=(6, 2)), "another base"),
    ("down", dict(down=(2, 6, 1, 1), up=(6, 2, 1, 1)), "another base"),
    ("attn1.to_q", dict(down=(2, 6), up=(6, 2), dora_scale=(1, 5)), "one per output"),
    ("attn1.to_q", dict(down=(2, 6), up=(6, 2), dora_scale=()), "one per output"),
], ids=str)
def test_weights_of_another_base_are_turned_down(unet, path, entry, complaint):
    with pytest.raises(ValueError, match=complaint):
        Adapter.from_weights({"unet": unet}, {("unet", path): {name: torch.ones(shape) for name, shape in entry.items()}})


def test_nothing_to_train_is_an_error(unet):
    with pytest.raises(ValueError, match="unet_target_modules"):
        Adapter.create({"unet": unet}, {"unet": []}, rank=1, alpha=1)


def test_attaching_does_not_touch_the_weights(unet):
    versions = [p._version for p in unet.parameters()]
    adapter = make(unet, conv_rank=1)
    with borrowed(unet), adapter.attached({"unet": unet}):
        unet(PICTURE).sum().backward()
    assert [p._version for p in unet.parameters()] == versions and all(p.grad is None for p in unet.parameters())
