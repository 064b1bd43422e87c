"""Optimizers: each really learns, its state survives a file; schedules against the libraries' own; EMA by its formula."""
from __future__ import annotations

import importlib.util
import io
import logging
import math
import sys
import warnings

import pytest
import torch

from hotlora.trainer.config import LR_SCHEDULERS, OPTIMIZERS, TrainConfig
from hotlora.trainer.optimizers import CURVES, EMA, SOURCES, TIME_SCALE, make_optimizer, make_scheduler, settled

PACKAGE = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt", "lion": "lion_pytorch",
           "schedulefree.AdamWScheduleFree": "schedulefree"}
RATES = {"prodigy": 1.0, "torch.optim.SGD": 0.05, "lion": 0.01}


def config(**settings) -> TrainConfig:
    return TrainConfig(train_data_dir="pictures", **settings)


def parameters(seed: int = 0) -> list[torch.nn.Parameter]:
    """Two small LoRA-like matrices, and one large enough (4,096 numbers) for 8-bit states."""
    random = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=random)) for shape in ((8, 16), (16, 8), (64, 80))]


def grouped(weights: list[torch.nn.Parameter], *rates: float) -> list[dict]:
    rates = rates or (0.02,)
    return [{"params": weights[i::len(rates)], "lr": rate, "name": f"group {i}"} for i, rate in enumerate(rates)]


def descend(weights, optimizer, scheduler=None, steps: int = 1, start: int = 0) -> None:
    """Pull the weights to 0.5, each step with its own bit of noise in the gradient."""
    for step in range(start, start + steps):
        random = torch.Generator().manual_seed(step)
        for weight in weights:
            weight.grad = (weight.detach() - 0.5) + 0.01 * torch.randn(weight.shape, generator=random)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def distance(weights) -> float:
    return math.sqrt(sum(float((weight.detach() - 0.5).square().sum()) for weight in weights))


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def make(name: str, weights, **settings):
    if name in PACKAGE:
        pytest.importorskip(PACKAGE[name])
    rate = RATES.get(name, 0.02)
    settings = {"optimizer": name, "learning_rate": rate, **settings}
    return make_optimizer(config(**settings), grouped(weights, *[rate] * (1 if name == "prodigy" else 2)))


ALL = (*OPTIMIZERS, "torch.optim.SGD", "torch.optim.RMSprop", "schedulefree.AdamWScheduleFree")


def test_every_choice_has_a_source():
    assert set(SOURCES) == set(OPTIMIZERS) and set(CURVES) | {"inverse_sqrt"} == set(LR_SCHEDULERS)


@pytest.mark.parametrize("name", ALL)
def test_each_optimizer_comes_closer_to_the_goal(name):
    weights = parameters()
    before, optimizer = distance(weights), make(name, weights)
    descend(weights, optimizer, steps=150)
    assert distance(weights) < 0.5 * before


@pytest.mark.parametrize("name", ALL)
def test_a_run_cut_in_two_ends_bit_identical(name):
    def start():
        weights = parameters()
        optimizer = make(name, weights)
        return weights, optimizer, make_scheduler(config(lr_warmup_steps=3), optimizer, 20)

    whole, optimizer, scheduler = start()
    descend(whole, optimizer, scheduler, steps=12)

    first, optimizer, scheduler = start()
    descend(first, optimizer, scheduler, steps=5)
    saved = through_a_file({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(),
                            "weights": [weight.detach() for weight in first]})
    second, optimizer, scheduler = start()
    with torch.no_grad():
        for weight, value in zip(second, saved["weights"]):
            weight.copy_(value)
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    descend(second, optimizer, scheduler, steps=7, start=5)
    assert all(torch.equal(a, b) for a, b in zip(whole, second))


def test_groups_keep_their_own_rates_and_names():
    optimizer = make_optimizer(config(), grouped(parameters(), 1e-4, 5e-5))
    assert [(group["lr"], group["name"]) for group in optimizer.param_groups] == [(1e-4, "group 0"), (5e-5, "group 1")]


def test_weight_decay_and_arguments_reach_the_optimizer():
    optimizer = make_optimizer(config(weight_decay=0.3, optimizer_args={"betas": [0.8, 0.9], "eps": 1e-6}), grouped(parameters()))
    group = optimizer.param_groups[0]
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.3, (0.8, 0.9), 1e-6)
    without = make_optimizer(config(optimizer="torch.optim.Rprop"), grouped(parameters()))
    assert "weight_decay" not in without.param_groups[0]


def test_adamw_equals_the_formula():
    """Decoupled weight decay (1711.05101, algorithm 2), two steps in float64 by hand."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = make_optimizer(config(weight_decay=0.1), grouped([weight], 0.01))
    x, m, v = [1.0, -2.0], [0.0, 0.0], [0.0, 0.0]
    for step, gradient in enumerate(([0.5, -1.0], [0.25, 3.0]), start=1):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        for i, g in enumerate(gradient):
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g * g
            x[i] -= 0.01 * (m[i] / (1 - 0.9**step) / (math.sqrt(v[i] / (1 - 0.999**step)) + 1e-8) + 0.1 * x[i])
    assert weight.tolist() == pytest.approx(x, rel=1e-5)


@pytest.mark.parametrize("name, package", [("prodigy", "prodigyopt"), ("adamw8bit", "bitsandbytes"), ("lion", "lion-pytorch")])
def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch, name, package):
    for module in ("prodigyopt", "bitsandbytes", "bitsandbytes.optim", "lion_pytorch"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"optimizer is {name}, which needs the package {package}.*pip install {package}"):
        make_optimizer(config(optimizer=name), grouped(parameters()))


def test_lion_comes_from_bitsandbytes_where_lion_pytorch_is_missing(monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setitem(sys.modules, "lion_pytorch", None)
    assert type(make("adamw8bit", parameters())).__module__.startswith("bitsandbytes")
    optimizer = make_optimizer(config(optimizer="lion"), grouped(parameters()))
    assert type(optimizer).__module__.startswith("bitsandbytes")


def test_adafactor_comes_from_torch_where_transformers_is_missing(monkeypatch):
    if not hasattr(torch.optim, "Adafactor"):
        pytest.skip("this torch has no Adafactor")
    monkeypatch.setitem(sys.modules, "transformers.optimization", None)
    weights = parameters()
    optimizer = make_optimizer(config(optimizer="adafactor"), grouped(weights, 0.05))
    assert type(optimizer) is torch.optim.Adafactor
    before = distance(weights)
    descend(weights, optimizer, steps=60)
    assert distance(weights) < before


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
def test_adafactor_takes_the_arguments_of_settings_files_in_use():
    arguments = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    optimizer = make_optimizer(config(optimizer="adafactor", optimizer_args=arguments), grouped(parameters()))
    assert optimizer.param_groups[0]["lr"] == 0.02
    with pytest.raises(ValueError, match="optimizer adafactor does not work with optimizer_args.*relative_step"):
        make_optimizer(config(optimizer="adafactor", optimizer_args={"relative_step": True}), grouped(parameters()))


@pytest.mark.parametrize("settings, message", [
    ({"optimizer_args": {"beta": 1}}, "adamw does not work with optimizer_args .*beta.*it takes lr, betas.*change"),
    ({"optimizer_args": {"betas": [2, 3]}}, "adamw does not work with optimizer_args .*betas.*Invalid beta"),
    ({"optimizer": "torch.optim.LBFGS"}, "optimizer torch.optim.LBFGS .*closure"),
    ({"optimizer": "torch.optim.Adamw"}, r"torch\.optim has no Adamw \(did you mean Adam"),
    ({"optimizer": "no_such_package.Best"}, "optimizer: there is no module no_such_package"),
    ({"optimizer": "collections.OrderedDict"}, "OrderedDict.*not an optimizer"),
])
def test_each_mistake_has_its_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(config(**settings), grouped(parameters()))


def test_prodigy_takes_one_rate_and_wants_it_near_one(caplog):
    pytest.importorskip("prodigyopt")
    with pytest.raises(ValueError, match="one learning rate.*0.5, 1.0; remove text_encoder_lr and lora_plus_ratio"):
        make_optimizer(config(optimizer="prodigy"), grouped(parameters(), 1.0, 0.5))
    with caplog.at_level(logging.WARNING):
        make_optimizer(config(optimizer="prodigy"), grouped(parameters(), 1.0))
        assert not caplog.records
        make_optimizer(config(optimizer="prodigy"), grouped(parameters(), 1e-4))
    assert "1 is usual" in caplog.text


def test_schedule_free_optimizers_give_their_average_to_save():
    pytest.importorskip("schedulefree")
    weights = parameters()
    optimizer = make("schedulefree.AdamWScheduleFree", weights)
    descend(weights, optimizer, steps=10)
    training = [weight.detach().clone() for weight in weights]
    with settled(optimizer):
        assert not torch.equal(weights[0], training[0])
    for weight, before in zip(weights, training):
        torch.testing.assert_close(weight.detach(), before, rtol=1e-4, atol=1e-5)
    descend(weights, optimizer, steps=1, start=10)


def test_settled_changes_nothing_for_other_optimizers():
    weights = parameters()
    optimizer = make("adamw", weights)
    before = [weight.detach().clone() for weight in weights]
    with settled(optimizer):
        assert all(torch.equal(a, b) for a, b in zip(weights, before))


# Schedules

def rates(total: int, **settings) -> list[float]:
    """The learning rate that each step of a run uses, as shares."""
    weights = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(weights, lr=2.0)
    scheduler = make_scheduler(config(**settings), optimizer, total)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(total):
            found.append(optimizer.param_groups[0]["lr"] / 2)
            optimizer.step()
            scheduler.step()
    return found


@pytest.mark.parametrize("name", [name for name in LR_SCHEDULERS if name != "polynomial"])
@pytest.mark.parametrize("cycles", [1, 3])
def test_schedules_equal_those_of_transformers(name, cycles):
    optimization = pytest.importorskip("transformers.optimization")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    if name == "cosine_with_restarts":
        theirs = optimization.get_cosine_with_hard_restarts_schedule_with_warmup(optimizer, 0, 50, num_cycles=cycles)
    elif name == "inverse_sqrt":
        theirs = optimization.get_inverse_sqrt_schedule(optimizer, 0, timescale=TIME_SCALE)
    else:
        theirs = optimization.get_scheduler(name, optimizer, 0, None if name == "constant" else 50)
    expected = []
    for _ in range(50):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(50, lr_scheduler=name, lr_cycles=cycles) == pytest.approx(expected, abs=1e-9)


def test_inverse_sqrt_does_not_depend_on_the_length_of_the_run():
    assert rates(40, lr_scheduler="inverse_sqrt", lr_warmup_steps=5) == rates(200, lr_scheduler="inverse_sqrt", lr_warmup_steps=5)[:40]


def test_schedules_equal_those_of_torch():
    library = torch.optim.lr_scheduler
    for name, make_theirs in {
            "linear": lambda o: library.LinearLR(o, 1.0, 1e-12, 40), "cosine": lambda o: library.CosineAnnealingLR(o, 40),
            "cosine_with_restarts": lambda o: library.CosineAnnealingWarmRestarts(o, 20),
            "polynomial": lambda o: library.PolynomialLR(o, 40, power=2)}.items():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        theirs, expected = make_theirs(optimizer), []
        for _ in range(40):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            theirs.step()
        assert rates(40, lr_scheduler=name, lr_cycles=2) == pytest.approx(expected, abs=1e-6), name


@pytest.mark.parametrize("name", LR_SCHEDULERS)
def test_warm_up_rises_evenly_and_then_the_curve_starts_at_its_top(name):
    found = rates(24, lr_scheduler=name, lr_warmup_steps=4)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[4:] == pytest.approx(rates(20, lr_scheduler=name))


@pytest.mark.parametrize("name", CURVES)
def test_after_the_end_the_rate_stays(name):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_scheduler(config(lr_scheduler=name, lr_cycles=3), optimizer, 10)
    for _ in range(14):
        optimizer.step()
        scheduler.step()
        if scheduler.last_epoch >= 10:
            assert optimizer.param_groups[0]["lr"] == pytest.approx(1.0 if name == "constant" else 0.0, abs=1e-12)


def test_a_run_resumed_with_more_steps_follows_the_longer_curve():
    def start(total):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, make_scheduler(config(), optimizer, total)

    optimizer, scheduler = start(10)
    for _ in range(8):
        optimizer.step()
        scheduler.step()
    saved = through_a_file({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
    optimizer, scheduler = start(40)
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * (1 + math.cos(math.pi * 9 / 40)))


def test_a_warm_up_longer_than_the_run_is_mentioned(caplog):
    with caplog.at_level(logging.WARNING):
        assert rates(5, lr_warmup_steps=10)[-1] < 0.5
    assert "never reached" in caplog.text


# EMA

def test_ema_follows_its_formula():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    ema, expected = EMA([weight], 0.25), 1.0
    for n, value in enumerate((2.0, -3.0, 0.5, 8.0, 8.0), start=1):
        with torch.no_grad():
            weight.fill_(value)
        ema.update()
        share = min(0.25, (1 + n) / (10 + n))
        expected = share * expected + (1 - share) * value
    with ema.applied():
        assert float(weight.detach()) == pytest.approx(expected, rel=1e-6)


def test_ema_gives_the_weights_back_exactly_even_after_an_error():
    weights = parameters()
    ema = EMA(weights, 0.9)
    before = [weight.detach().clone() for weight in weights]
    descend(weights, torch.optim.SGD(weights, lr=0.1), steps=3)
    ema.update()
    trained = [weight.detach().clone() for weight in weights]
    with pytest.raises(KeyError):
        with ema.applied():
            assert not torch.equal(weights[0], trained[0]) and not torch.equal(weights[0], before[0])
            raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(weights, trained)) and all(weight.requires_grad for weight in weights)


def test_ema_survives_a_file_and_turns_other_weights_down():
    def run(ema, weights, steps, start=0):
        for step in range(start, start + steps):
            descend(weights, torch.optim.SGD(weights, lr=0.1), start=step)
            ema.update()

    whole = parameters()
    ema = EMA(whole, 0.9)
    run(ema, whole, 6)
    first = parameters()
    half = EMA(first, 0.9)
    run(half, first, 3)
    saved = through_a_file(half.state_dict())
    resumed = EMA(first, 0.9)
    resumed.load_state_dict(saved)
    run(resumed, first, 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(ema.averages, resumed.averages))
    with pytest.raises(ValueError, match="saved EMA has 3 tensors that do not fit the 2"):
        EMA(first[:2], 0.9).load_state_dict(saved)
