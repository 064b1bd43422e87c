"""The objective against diffusers' schedulers, and against the papers' formulas worked out by another route."""
from __future__ import annotations

import itertools
import logging
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

from hotlora.trainer import randomness
from hotlora.trainer.config import TrainConfig
from hotlora.trainer.objective import Objective, Prediction, logit_normal, zero_terminal_snr

SD = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def sd_alphas() -> torch.Tensor:
    """The schedule of Stable Diffusion 1 to XL, by numpy."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return torch.from_numpy(np.exp(np.cumsum(np.log1p(-betas)))).float()


def config(**settings) -> TrainConfig:
    return TrainConfig(train_data_dir="pictures", **settings)


def objective(kind: str = "eps", alphas: torch.Tensor | None = None, **settings) -> Objective:
    alphas = None if kind == "flow" else sd_alphas() if alphas is None else alphas
    return Objective(config(**settings), Prediction(kind, alphas))


def latents(seed: int, batch: int = 4, channels: int = 4) -> torch.Tensor:
    return torch.randn(batch, channels, 6, 5, generator=torch.Generator().manual_seed(seed))


def z0_from(kind: str, out: torch.Tensor, z_t: torch.Tensor, a: float) -> torch.Tensor:
    """Clean latents that an output stands for: the two equations for z_t and the target, solved for z0."""
    if kind == "flow":
        return z_t - a * out
    signal, noise = math.sqrt(a), math.sqrt(1 - a)
    return (z_t - noise * out) / signal if kind == "eps" else signal * z_t - noise * out


# Schedules, noisy latents, targets

@pytest.mark.parametrize("t", [0, 1, 250, 500, 998, 999])
def test_noisy_and_velocity_equal_diffusers(t):
    scheduler = pytest.importorskip("diffusers").DDPMScheduler(**SD)
    z0, noise, t_B = latents(0), latents(1), torch.full((4,), t)
    for kind in ("eps", "v"):
        ours = objective(kind, scheduler.alphas_cumprod)
        torch.testing.assert_close(ours.noisy(z0, noise, t_B), scheduler.add_noise(z0, noise, t_B), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.target(z0, noise, t_B), scheduler.get_velocity(z0, noise, t_B), rtol=1e-5, atol=1e-5)
    assert torch.equal(objective("eps").target(z0, noise, t_B), noise)


def test_each_sample_has_its_own_timestep():
    ours, z0, noise, t_B = objective("v"), latents(0), latents(1), torch.tensor([3, 400, 700, 999])
    for row in range(4):
        one = slice(row, row + 1)
        assert torch.equal(ours.noisy(z0, noise, t_B)[one], ours.noisy(z0[one], noise[one], t_B[one]))
        assert torch.equal(ours.target(z0, noise, t_B)[one], ours.target(z0[one], noise[one], t_B[one]))


def test_flow_equals_diffusers():
    diffusers = pytest.importorskip("diffusers", "0.30", "what is compared with: older diffusers takes one timestep at a time")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    ours, z0, noise = objective("flow"), latents(0), latents(1)
    t_B = scheduler.timesteps[[10, 300, 600, 990]]
    sigma_B = t_B / 1000
    torch.testing.assert_close(ours.model_timestep(sigma_B), t_B)
    torch.testing.assert_close(ours.noisy(z0, noise, sigma_B), scheduler.scale_noise(z0, t_B, noise))
    # One Euler step of the library along the target, from noise level sigma to 0, must arrive at the clean latents
    z_t, target = ours.noisy(z0, noise, sigma_B), ours.target(z0, noise, sigma_B)
    torch.testing.assert_close(z_t + (0 - sigma_B.view(-1, 1, 1, 1)) * target, z0, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind, t", [("eps", 5), ("eps", 900), ("v", 5), ("v", 999), ("flow", 0.2), ("flow", 0.97)])
def test_the_target_leads_back_to_the_clean_latents(kind, t):
    ours, z0, noise, t_B = objective(kind), latents(0), latents(1), torch.full((4,), t)
    a = t if kind == "flow" else float(sd_alphas()[t])
    back = z0_from(kind, ours.target(z0, noise, t_B), ours.noisy(z0, noise, t_B), a)
    torch.testing.assert_close(back, z0, atol=1e-4, rtol=1e-4)


def test_zero_terminal_snr_equals_diffusers():
    diffusers = pytest.importorskip("diffusers")
    from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(diffusers.DDPMScheduler(**SD).betas.double()), 0).float()
    ours = objective("v", zero_terminal_snr=True).prediction.alphas_cumprod
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert ours[-1] == 0 and ours[0] == sd_alphas()[0] and bool((ours.diff() < 0).all())
    again = zero_terminal_snr(Prediction("v", ours)).alphas_cumprod
    torch.testing.assert_close(again, ours)


def test_pure_noise_at_the_last_step_holds_nothing_of_the_picture():
    ours, noise, last = objective("v", zero_terminal_snr=True), latents(1), torch.full((4,), 999)
    assert torch.equal(ours.noisy(latents(0), noise, last), noise)
    assert torch.equal(ours.target(latents(0), noise, last), -latents(0))


def test_zero_terminal_snr_is_turned_down_where_it_makes_no_sense():
    with pytest.raises(ValueError, match=r"eps.*input itself.*v-prediction"):
        objective("eps", zero_terminal_snr=True)
    with pytest.raises(ValueError, match="flow model.*remove it"):
        objective("flow", zero_terminal_snr=True)
    with pytest.raises(ValueError, match="ends in pure noise"):
        objective("eps", zero_terminal_snr(Prediction("v", sd_alphas())).alphas_cumprod)


# Timesteps

def even(count: int) -> torch.Tensor:
    """Midpoints of `count` equal parts of [0, 1)."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("low, high", [(0, 1000), (100, 700), (290, 291), (0, 1), (999, 1000), (570, 580)])
def test_uniform_timesteps_hit_each_level_of_the_range_equally_often(low, high):
    ours = objective("eps", min_timestep=low, max_timestep=high)
    t = ours.timesteps(even(7 * (high - low)))
    assert t.dtype == torch.int64
    assert t.tolist() == [level for level in range(low, high) for _ in range(7)]
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert ours.timesteps(edges).tolist() == [low, high - 1]
    assert ours.timesteps(torch.tensor([1 - 2**-24])).tolist() == [high - 1], "float32 numbers too"


def test_every_level_is_reachable_alone():
    levels = [int(objective(min_timestep=low, max_timestep=low + 1).timesteps(even(3)).unique()) for low in range(0, 1000, 7)]
    assert levels == list(range(0, 1000, 7))


def test_logit_normal_has_the_distribution_of_the_paper():
    sigma = objective("flow").timesteps(even(20001))
    normal = NormalDist()
    for share in (0.01, 0.1, 0.5, 0.84, 0.999):
        expected = 1 / (1 + math.exp(-normal.inv_cdf(share)))
        assert float((sigma < expected).double().mean()) == pytest.approx(share, abs=2e-4)
    # Density of 2403.03206 eq. 19 at some levels, from the share of samples in a narrow band
    for level in (0.2, 0.5, 0.8):
        density = math.exp(-math.log(level / (1 - level)) ** 2 / 2) / (math.sqrt(2 * math.pi) * level * (1 - level))
        assert float(((sigma - level).abs() < 0.01).double().mean()) / 0.02 == pytest.approx(density, rel=0.02)


def test_logit_normal_within_bounds_equals_drawing_again_until_inside():
    drawn = 1 / (1 + np.exp(-np.random.default_rng(0).standard_normal(400_000)))
    inside = np.sort(drawn[(drawn >= 0.3) & (drawn < 0.6)])
    ours = objective("flow", min_timestep=300, max_timestep=600).timesteps(even(5001)).numpy()
    assert ours.min() >= 0.3 and ours.max() <= 0.6
    shares = [0.05, 0.25, 0.5, 0.75, 0.95]
    np.testing.assert_allclose(np.quantile(ours, shares), np.quantile(inside, shares), atol=2e-3)


@pytest.mark.parametrize("kind, sampling", [("eps", "auto"), ("flow", "auto"), ("v", "logit_normal"), ("flow", "uniform")])
def test_sampling_by_kind(kind, sampling):
    t = objective(kind, timestep_sampling=sampling).timesteps(even(4000)).double()
    level = t if kind == "flow" else (t + 0.5) / 1000
    assert float(level.mean()) == pytest.approx(0.5, abs=0.01)
    logit = sampling == "logit_normal" or (kind, sampling) == ("flow", "auto")
    # Standard deviation: 0.2083 for the logit-normal (by numeric integration), 1 / sqrt(12) for the uniform distribution
    assert float(level.std()) == pytest.approx(0.2083 if logit else 12**-0.5, abs=2e-3)


def test_sigmas_stay_inside_zero_and_one():
    for sampling in ("uniform", "logit_normal"):
        sigma = objective("flow", timestep_sampling=sampling).timesteps(torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
        assert sigma.dtype == torch.float32 and 0 < sigma[0] < 0.01 and 0.99 < sigma[1] < 1
    assert torch.equal(logit_normal(torch.tensor([0.5])), torch.tensor([0.5], dtype=torch.float64))


def test_integer_timesteps_reach_the_model_unchanged():
    assert objective("v").model_timestep(torch.tensor([0, 999])).tolist() == [0, 999]


# Noise

def test_noise_of_a_sample_does_not_depend_on_its_batch():
    ours = objective(noise_offset=0.1)
    batch = ours.noise((4, 4, 6, 5), 9, 2, [0, 1, 2, 3])
    for sample in range(4):
        assert torch.equal(ours.noise((1, 4, 6, 5), 9, 2, [sample])[0], batch[sample])
    assert not torch.equal(batch, ours.noise((4, 4, 6, 5), 9, 3, [0, 1, 2, 3]))


def test_noise_offset_shifts_whole_channels():
    plain, shifted = objective(), objective(noise_offset=0.2)
    shape, samples = (256, 4, 8, 8), range(256)
    difference = shifted.noise(shape, 0, 0, samples) - plain.noise(shape, 0, 0, samples)
    assert float(difference.flatten(2).std(2).max()) < 1e-6
    offsets = difference.mean((2, 3)).flatten()
    assert float(offsets.std()) == pytest.approx(0.2, rel=0.1) and abs(float(offsets.mean())) < 0.03
    assert float(plain.noise(shape, 0, 0, samples).mean((2, 3)).std()) == pytest.approx(1 / 8, rel=0.1)


# Weights

def errors_in(kind: str, z0_error: float, t: int, alphas: torch.Tensor) -> float:
    """Squared error of the model's output when its z0 is off by `z0_error`, by moving the output through z0_from's inverse."""
    a = float(alphas[t].double())
    one, off = (z0_from(kind, torch.tensor(out), torch.tensor(0.0), a) for out in (0.0, 1.0))
    return (z0_error / float(off - one)) ** 2


@pytest.mark.parametrize("kind, t", list(itertools.product(["eps", "v"], [0, 100, 400, 700, 999])))
def test_min_snr_weights_the_error_in_z0_by_the_smaller_of_snr_and_gamma(kind, t):
    alphas, gamma = sd_alphas(), 5.0
    snr = float(alphas[t].double() / (1 - alphas[t].double()))
    weighted = float(objective(kind).weight(torch.tensor([t]))) * errors_in(kind, 0.3, t, alphas)
    assert weighted == pytest.approx(min(snr, gamma) * 0.3**2, rel=1e-4)


@pytest.mark.parametrize("kind, t", list(itertools.product(["eps", "v"], [0, 100, 400, 700, 999])))
def test_debiased_is_the_eps_loss_over_the_root_of_snr(kind, t):
    alphas = sd_alphas()
    snr = float(alphas[t].double() / (1 - alphas[t].double()))
    weighted = float(objective(kind, debiased=True).weight(torch.tensor([t]))) * errors_in(kind, 0.3, t, alphas)
    assert weighted == pytest.approx(errors_in("eps", 0.3, t, alphas) / math.sqrt(snr), rel=1e-4)


def test_weights_by_hand():
    alphas, t_B = torch.tensor([10 / 11, 0.8, 0.5, 0.2]), torch.arange(4)  # SNR 10, 4, 1, 1/4
    for kind, settings, expected in [
        ("eps", {}, [1 / 2, 1, 1, 1]), ("v", {}, [5 / 11, 4 / 5, 1 / 2, 1 / 5]),
        ("eps", {"min_snr_gamma": 1.0}, [1 / 10, 1 / 4, 1, 1]),
        ("eps", {"debiased": True}, [10**-0.5, 1 / 2, 1, 2]), ("v", {"debiased": True}, [10**0.5 / 11, 2 / 5, 1 / 2, 2 / 5]),
        ("eps", {"min_snr_gamma": None}, [1, 1, 1, 1]), ("v", {"min_snr_gamma": 0}, [1, 1, 1, 1])]:
        weight = objective(kind, alphas, **settings).weight(t_B)
        assert weight.dtype == torch.float32
        assert weight.tolist() == pytest.approx(expected, rel=1e-5), (kind, settings)


def test_debiased_replaces_min_snr():
    t_B = torch.tensor([0, 300, 999])
    weight, alone = (objective(debiased=True, min_snr_gamma=gamma).weight(t_B) for gamma in (5.0, None))
    assert torch.equal(weight, alone) and not torch.equal(weight, objective().weight(t_B))


def test_flow_has_no_weight_and_says_so_when_one_is_asked_for(caplog):
    with caplog.at_level(logging.WARNING):
        assert objective("flow").weight(torch.tensor([0.1, 0.9])).tolist() == [1, 1]
        assert not caplog.records
        assert objective("flow", debiased=True).weight(torch.tensor([0.1, 0.9])).tolist() == [1, 1]
    assert "debiased has no effect" in caplog.text


@pytest.mark.parametrize("settings", [
    {}, {"debiased": True}, {"min_snr_gamma": None}, {"loss_type": "huber"}, {"min_snr_gamma": 1000.0}])
def test_loss_and_gradient_are_finite_at_every_level_down_to_zero_snr(settings):
    gamma = settings.get("min_snr_gamma", 5)
    for kind, alphas in [("v", zero_terminal_snr(Prediction("v", sd_alphas())).alphas_cumprod), ("eps", sd_alphas()),
                         ("v", torch.tensor([1.0, 0.5, 0.0])), ("eps", torch.tensor([1.0, 0.5, 0.1]))]:
        ours, count = objective(kind, alphas, **settings), len(alphas)
        out = torch.zeros(count, 1, 2, 2, requires_grad=True)
        loss_B = ours.loss(out, torch.ones(count, 1, 2, 2), torch.arange(count))
        loss_B.sum().backward()
        assert bool(loss_B.isfinite().all()) and bool(out.grad.isfinite().all()) and bool((loss_B >= 0).all())
        if kind == "v":
            assert (float(loss_B[-1].detach()) > 0) == (gamma is None), "pure noise counts only without a weight"


# Loss

def test_l2_is_the_mean_square_per_sample():
    out, target = latents(0), latents(1)
    loss_B = objective(min_snr_gamma=None).loss(out, target, torch.arange(4))
    np.testing.assert_allclose(loss_B.numpy(), ((out.numpy() - target.numpy()) ** 2).reshape(4, -1).mean(1), rtol=1e-5)


@pytest.mark.parametrize("delta", [0.1, 1.0])
def test_huber_is_squared_up_to_delta_and_a_tangent_beyond(delta):
    ours = objective(min_snr_gamma=None, loss_type="huber", huber_delta=delta)
    for error in (0.0, 0.05, delta, 3.0, -7.0):
        expected = error**2 if abs(error) <= delta else delta**2 + 2 * delta * (abs(error) - delta)
        loss = ours.loss(torch.full((1, 1, 2, 2), error), torch.zeros(1, 1, 2, 2), torch.tensor([0]))
        assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_half_precision_outputs_give_a_float32_loss():
    for kind in (torch.float16, torch.bfloat16):
        out = torch.full((1, 4, 8, 8), 300.0, dtype=kind)
        loss = objective(min_snr_gamma=None).loss(out, torch.zeros(1, 4, 8, 8), torch.tensor([0]))
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx(float(out[0, 0, 0, 0]) ** 2), "300 squared overflows float16"


def test_the_mask_limits_the_loss_to_a_part():
    ours, target = objective(min_snr_gamma=None), torch.zeros(2, 4, 4, 4)
    out = torch.zeros(2, 4, 4, 4)
    out[:, :, :2] = 3.0
    out[:, :, 2:] = 100.0
    out.requires_grad_()
    mask = torch.zeros(2, 1, 4, 4)
    mask[:, :, :2] = 1.0
    loss_B = ours.loss(out, target, torch.tensor([0, 1]), mask=mask)
    assert loss_B.tolist() == pytest.approx([9, 9]), "a mean over the part, whatever its size"
    loss_B.sum().backward()
    assert float(out.grad[:, :, 2:].abs().max()) == 0 and float(out.grad[:, :, :2].abs().min()) > 0


def test_a_soft_mask_is_a_weighted_mean_and_an_empty_one_teaches_nothing():
    ours, out = objective(min_snr_gamma=None), latents(0, 3)
    mask = torch.rand(3, 1, 6, 5, generator=torch.Generator().manual_seed(2))
    mask[2] = 0
    loss_B = ours.loss(out, torch.zeros_like(out), torch.arange(3), mask=mask)
    everywhere = np.broadcast_to(mask.numpy(), out.shape)
    for row in range(2):
        assert float(loss_B[row]) == pytest.approx(np.average(out[row].numpy() ** 2, weights=everywhere[row]), rel=1e-5)
    assert float(loss_B[2]) == 0
    full = ours.loss(out, torch.zeros_like(out), torch.arange(3), mask=torch.ones(3, 1, 6, 5))
    torch.testing.assert_close(full, ours.loss(out, torch.zeros_like(out), torch.arange(3)))


def test_sample_weight_multiplies_each_sample():
    ours, out, t_B = objective(), latents(0), torch.tensor([5, 200, 600, 999])
    plain = ours.loss(out, torch.zeros_like(out), t_B)
    weighted = ours.loss(out, torch.zeros_like(out), t_B, sample_weight=torch.tensor([1.0, 0.5, 0.0, 2.0]))
    torch.testing.assert_close(weighted, plain * torch.tensor([1.0, 0.5, 0.0, 2.0]))


def test_one_batch_is_the_same_as_its_samples_one_by_one():
    ours = objective("v", noise_offset=0.05)
    z0, samples, out = latents(0), [4, 5, 6, 7], latents(3)

    def losses(rows: slice) -> torch.Tensor:
        numbers = samples[rows]
        t_B = ours.timesteps(randomness.uniform(1, "timestep", 8, numbers))
        noise = ours.noise((len(numbers), *z0.shape[1:]), 1, 8, numbers)
        return ours.loss(out[rows] + ours.noisy(z0[rows], noise, t_B), ours.target(z0[rows], noise, t_B), t_B)

    together = losses(slice(0, 4))
    apart = torch.cat([losses(slice(row, row + 1)) for row in range(4)])
    torch.testing.assert_close(together, apart, rtol=1e-6, atol=0)


def test_the_best_answer_to_many_noises_is_the_clean_picture():
    """Descending the loss alone must find z0, for each kind of prediction: signs and scales are right together."""
    z0 = latents(0, 1, 1)
    for kind, settings in (("eps", {}), ("v", {"debiased": True}), ("flow", {"loss_type": "huber"})):
        ours = objective(kind, **settings)
        guess = torch.zeros_like(z0, requires_grad=True)
        optimizer = torch.optim.Adam([guess], lr=0.15)
        for step in range(60):
            t_B = ours.timesteps(randomness.uniform(0, "timestep", step, range(8)))
            noise = ours.noise((8, *z0.shape[1:]), 0, step, range(8))
            z_t = ours.noisy(z0.expand(8, -1, -1, -1), noise, t_B)
            rate = t_B if kind == "flow" else sd_alphas()[t_B]
            rate = rate.view(-1, 1, 1, 1)
            if kind == "flow":
                out = (z_t - guess) / rate
            elif kind == "eps":
                out = (z_t - rate.sqrt() * guess) / (1 - rate).sqrt()
            else:
                out = (rate.sqrt() * z_t - guess) / (1 - rate).sqrt()
            loss = ours.loss(out, ours.target(z0.expand(8, -1, -1, -1), noise, t_B), t_B).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert float((guess.detach() - z0).abs().max()) < 0.2, (kind, settings)
