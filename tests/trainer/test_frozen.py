"""The frozen operations against autograd's own, and a borrowed module against the module before and after."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hotlora.trainer import frozen
from hotlora.trainer.adapter import Adapter
from hotlora.trainer.frozen import FrozenForward, HalfNorm, alias, borrowed, frozen_conv2d, frozen_forwards, frozen_linear, plain_tensors

CONVS = [dict(stride=1, padding=1), dict(stride=2, padding=1), dict(stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
         dict(padding=1, groups=2)]


def random(*shape, dtype=torch.float64, grad=False):
    x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))
    return x.to(dtype).requires_grad_(grad)


def inference(x):
    with torch.inference_mode():
        return x.clone()


def saved_shapes(function):
    """Shapes of all that autograd saves while `function` runs."""
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: shapes.append(tuple(x.shape)) or x, lambda x: x):
        function()
    return shapes


class Net(nn.Module):
    """A bit of everything that a denoiser has; `tail` shares the weight of `head`."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.head = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.same = nn.Conv2d(4, 4, 3, padding="same")
        self.group = nn.GroupNorm(2, 4)
        self.batch = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.rand(8) + 1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.tail = nn.Linear(8, 8, bias=False)
        self.tail.weight = self.head.weight

    def forward(self, x, tokens):
        hidden = self.norm(self.head(x) + self.embedding(tokens)) * self.scale
        hidden = hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0]
        picture = self.batch(self.group(self.same(self.conv(hidden.view(x.shape[0], 2, 2, -1)))))
        return self.tail(picture.flatten(1).view(x.shape[0], -1, 8))


def make_net(frozen_in_inference_mode=False):
    torch.manual_seed(0)
    if not frozen_in_inference_mode:
        return Net().eval()
    with torch.inference_mode():
        torch.manual_seed(0)
        return Net().eval()


INPUT = random(3, 4, 8, dtype=torch.float32), torch.tensor([[0, 1, 2, 3]] * 3)


def gradient_of_input(net):
    x = INPUT[0].clone().requires_grad_(True)
    y = net(x, INPUT[1])
    y.square().sum().backward()
    return y.detach(), x.grad


def test_gradients_of_the_linear_operation_are_right():
    x, weight, bias = random(2, 3, 5, grad=True), random(4, 5), random(4)
    assert torch.autograd.gradcheck(lambda x: frozen_linear(x, weight, bias), x)
    assert torch.autograd.gradcheck(lambda x: frozen_linear(x, inference(weight)), x)


@pytest.mark.parametrize("geometry", CONVS)
def test_gradients_of_the_convolution_are_right(geometry):
    x, weight, bias = random(2, 4, 5, 6, grad=True), random(6, 4 // geometry.get("groups", 1), 3, 3), random(6)
    assert torch.equal(frozen_conv2d(x, weight, bias, **geometry), F.conv2d(x, weight, bias, **geometry))
    assert torch.autograd.gradcheck(lambda x: frozen_conv2d(x, inference(weight), bias, **geometry), x)


def test_neither_weight_nor_input_is_saved():
    x, weight, kernel = random(2, 5, dtype=torch.float32, grad=True), random(4, 5).half(), random(3, 2, 3, 3).half()
    picture = random(1, 2, 4, 4, dtype=torch.float32, grad=True)
    assert saved_shapes(lambda: frozen_linear(x, weight)) == []
    assert saved_shapes(lambda: frozen_conv2d(picture, kernel, padding=1)) == []
    assert saved_shapes(lambda: F.conv2d(picture, kernel.float(), padding=1)), "the hook sees what autograd saves"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_a_weight_of_another_dtype_counts_as_its_value(dtype):
    x, weight, kernel = random(2, 5, dtype=torch.float32, grad=True), random(4, 5).to(dtype), random(3, 2, 3, 3).to(dtype)
    y = frozen_linear(x, weight, random(4).half())
    assert y.dtype == torch.float32
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.ones(2, 4) @ weight.float())
    picture = random(1, 2, 4, 4, dtype=torch.float32, grad=True)
    ours = torch.autograd.grad(frozen_conv2d(picture, kernel, padding=1).square().sum(), picture)[0]
    plain = torch.autograd.grad(F.conv2d(picture, kernel.float(), padding=1).square().sum(), picture)[0]
    torch.testing.assert_close(ours, plain)


def test_autocast_gives_the_same_dtypes_and_values_as_torchs_own_layers():
    x, picture = random(2, 6, 5, dtype=torch.float32, grad=True), random(1, 2, 4, 4, dtype=torch.float32, grad=True)
    weight, kernel = random(4, 5, dtype=torch.float32), random(3, 2, 3, 3, dtype=torch.float32)
    for ours, plain, at in ((frozen_linear, F.linear, (x, weight)), (frozen_conv2d, F.conv2d, (picture, kernel))):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, expected = ours(*at), plain(*at)
            inside = torch.autograd.grad(y.float().square().sum(), at[0], retain_graph=True)[0]
        assert y.dtype == expected.dtype == torch.bfloat16 and torch.equal(y, expected)
        outside = torch.autograd.grad(y.float().square().sum(), at[0])[0]
        assert outside.dtype == torch.float32 and torch.equal(inside, outside)
        torch.testing.assert_close(outside, torch.autograd.grad(expected.float().square().sum(), at[0])[0], rtol=0.02, atol=0.05)


def test_an_alias_is_the_same_memory_without_inference_mode():
    x = inference(random(4, 6))[1:, ::2]
    plain = alias(x)
    assert not plain.is_inference() and torch.equal(plain, x)
    assert plain.data_ptr() == x.data_ptr() and plain.stride() == x.stride()
    assert alias(plain) is plain


def test_a_borrowed_module_of_inference_tensors_has_the_gradients_of_a_plain_one():
    frozen, plain = make_net(True), make_net()
    with pytest.raises(RuntimeError, match="[Ii]nference tensors"):
        gradient_of_input(frozen)
    y, gradient = gradient_of_input(plain)
    with borrowed(frozen):
        y_borrowed, gradient_borrowed = gradient_of_input(frozen)
    torch.testing.assert_close(y_borrowed, y)
    torch.testing.assert_close(gradient_borrowed, gradient)


@pytest.mark.parametrize("in_inference_mode", [False, True])
def test_everything_is_put_back(in_inference_mode):
    net = make_net(in_inference_mode)
    net.conv.train()
    if not in_inference_mode:
        net.norm.requires_grad_(False)
    host_forward = net.head.__dict__["forward"] = lambda x: F.linear(x, net.head.weight, net.head.bias)

    def state():
        return [(name, part.training, part.__dict__.get("forward"), {n: id(p) for n, p in part._parameters.items()},
                 {n: id(b) for n, b in part._buffers.items()}) for name, part in net.named_modules()]

    before, flags = state(), [p.requires_grad for p in net.parameters()]
    with torch.inference_mode():
        y = net.eval()(*INPUT)
    net.conv.train()
    with pytest.raises(KeyboardInterrupt), borrowed(net), borrowed(net.attention):
        net.train()
        assert not any(p.requires_grad or p.is_inference() for p in net.parameters())
        assert net.head.forward is host_forward and isinstance(net.conv.forward, FrozenForward)
        assert net.tail.weight is net.head.weight
        raise KeyboardInterrupt
    assert state() == before and [p.requires_grad for p in net.parameters()] == flags
    with torch.inference_mode():
        assert torch.equal(net.eval()(*INPUT), y)


def test_nothing_of_the_weights_is_copied_by_borrowing():
    net = make_net(True)
    pointers = [p.data_ptr() for p in net.parameters()]
    with borrowed(net):
        assert [p.data_ptr() for p in net.parameters()] == pointers


def test_a_layer_that_computes_something_else_is_left_alone():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layer = Doubled(3, 3)
    x = random(2, 3, dtype=torch.float32)
    y = layer(x)
    with borrowed(layer):
        assert torch.equal(layer(x), y)
        assert not layer.weight.requires_grad
    assert layer.weight.requires_grad


def test_tensors_can_be_given_back_for_a_while_and_some_parts_keep_theirs():
    net = make_net(True)
    own = dict(net.named_parameters())
    kept = {id(x) for x in net.head.parameters()}
    with frozen_forwards(net):
        for _ in range(2):
            with plain_tensors(net, lambda part: part is net.head):
                assert [name for name, x in net.named_parameters() if x.is_inference()] == [name for name, x in own.items() if id(x) in kept]
            assert all(x is own[name] for name, x in net.named_parameters())


@pytest.mark.parametrize("trained", [False, True])
def test_what_a_layer_gives_may_be_added_to_in_place(trained):
    """As Forge's transformer blocks do: torch refuses that for the result of a custom operation that is a view, as a product with a bias is."""
    layer = nn.Sequential(nn.Linear(6, 6)).requires_grad_(False)
    adapter = Adapter.create({"unet": layer}, {"unet": ["0"]}, rank=2, alpha=2)
    x_BNI = torch.randn(2, 3, 6, requires_grad=True)
    with frozen_forwards(layer):
        if trained:
            adapter.attach({"unet": layer})
        y_BNO = layer(x_BNI)
        y_BNO += x_BNI
        y_BNO.sum().backward()
        adapter.detach()
    torch.testing.assert_close(x_BNI.grad, 1 + layer[0].weight.sum(0).expand_as(x_BNI))
    torch.testing.assert_close(y_BNO, F.linear(x_BNI, layer[0].weight, layer[0].bias) + x_BNI)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.LayerNorm(4)], ids=str)
def test_a_norm_in_half_precision_computes_in_float32(norm):
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
    half = type(norm)(*([2, 4] if isinstance(norm, nn.GroupNorm) else [4]))
    half.load_state_dict(norm.state_dict())
    half.half()
    x = torch.randn(3, 4, dtype=torch.bfloat16)
    norm.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    assert torch.equal(HalfNorm(half)(x), norm(x.float()).bfloat16())


def test_a_lora_asks_the_layer_below_whether_its_weight_is_at_hand():
    class Elsewhere(FrozenForward):
        def has_weight_at_hand(self, device):
            return False

        def __call__(self, x):
            return torch.full((*x.shape[:-1], self.module.out_features), 7.0)

    layer = nn.Linear(3, 4)
    adapter = Adapter.create({"unet": nn.ModuleDict({"to_q": layer})}, {"unet": ["to_q"]}, rank=2, alpha=2)
    with borrowed(layer, Elsewhere), adapter.attached({"unet": nn.ModuleDict({"to_q": layer})}):
        assert torch.equal(layer(torch.ones(2, 3)), torch.full((2, 4), 7.0))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kernel, geometry", [((3, 3), (1, 1, 1)), ((3, 3), (2, 1, 1)), ((1, 1), (1, 0, 1)), ((3, 5), ((1, 2), (2, 4), (1, 2)))])
def test_the_input_gradient_of_a_deep_convolution_is_torch_s(batch, kernel, geometry, monkeypatch):
    monkeypatch.setattr(frozen, "MANY_WEIGHTS", 1)
    generator = torch.Generator().manual_seed(batch)
    weight = torch.randn(5, 4, *kernel, generator=generator, dtype=torch.float64)
    x = torch.randn(batch, 4, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.conv2d(x, weight, None, *geometry)
    assert y.shape[0] * y.shape[2] * y.shape[3] <= frozen.FEW_PIXELS
    gy = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    y.backward(gy)
    torch.testing.assert_close(frozen.conv2d_input(x.shape, weight, gy, *geometry), x.grad)
