"""The sampler against closed forms: Gaussian data, the DDPM posterior and the DDIM ODE."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dawm_jax.models import diffusion
from dawm_jax.models.diffusion import Process
from dawm_jax.models.sampler import Sampler, SamplerSettings
from dawm_jax.runtime import settings
from dawm_jax.types import UserError

# Gaussian data N(MEAN, STD^2): its ideal denoiser and its probability flow are known.
MEAN, STD = 1.5, 0.5
keep = lambda x: x


def _ideal_denoiser(alpha_bar, prediction):
    """E[target | x_k] for data N(MEAN, STD^2): Gaussian conditioning."""

    def denoise(x, step):
        a = alpha_bar[step]
        gain = jnp.sqrt(a) * STD**2 / (a * STD**2 + 1.0 - a)
        x0 = MEAN + gain * (x - jnp.sqrt(a) * MEAN)
        noise = (x - jnp.sqrt(a) * x0) / jnp.sqrt(1.0 - a)
        v = jnp.sqrt(a) * noise - jnp.sqrt(1.0 - a) * x0
        return {"epsilon": noise, "x0": x0, "v": v}[prediction]

    return denoise


def _sample(denoise, key, shape, process, *, clamp=keep, clip=keep, **options):
    sampler = Sampler(**{"order": 1, "eta": 0.0, "temperature": 1.0} | options)
    run = lambda key: sampler(denoise, key, shape, process=process, clamp=clamp, clip=clip)
    return np.asarray(jax.jit(run)(key))


# --- closed forms ---------------------------------------------------------------------------


def _flow_errors(order, counts):
    """Largest errors next to the probability flow of Gaussian data, STD = .5.

    Along the flow (x - sqrt(abar) MEAN) / std(x_k) is constant.
    """
    alpha_bar = diffusion.cosine_schedule(4096)
    key, shape = jax.random.key(0), (64, 2)
    start = np.asarray(jax.random.normal(jax.random.split(key)[0], shape), np.float64)
    a = float(alpha_bar[-1])
    expected = MEAN + STD * (start - np.sqrt(a) * MEAN) / np.sqrt(a * STD**2 + 1 - a)
    denoise = _ideal_denoiser(alpha_bar, "v")
    process = Process(alpha_bar, "v")

    def draw(count):
        # The steps of spacing "noise" stop at a noise of 0.03, however many there are.
        options = {"sampling_steps": count, "order": order, "spacing": "quadratic"}
        return _sample(denoise, key, shape, process, **options)

    return np.array([np.abs(draw(count) - expected).max() for count in counts])


def test_ddim_converges_to_the_probability_flow_at_first_order():
    errors = _flow_errors(1, (32, 64, 128, 256))
    # Euler's error is C / steps; next to the values' spread C is about 2.
    assert errors[-1] < 0.01
    np.testing.assert_allclose(errors[:-1] / errors[1:], 2.0, atol=0.1)  # exactly 2 in the limit


def test_extrapolation_converges_at_second_order():
    errors = _flow_errors(2, (8, 16, 32, 64))
    # Single doublings vary, the error changes its sign; float32 leaves 1e-4.
    assert np.log2(errors[0] / errors[-1]) / 3 > 1.8
    assert errors[0] < 0.2 * _flow_errors(1, (8,))[0]


def _numpy_ddim(target, noises, *, start, alpha_bars, steps, prediction, eta, clamp, clip):
    """eta = 0: Song et al. eq. 14, Euler in x / sqrt(abar). eta = 1: Ho et al. eq. 7."""
    x = start
    following = [*alpha_bars[1:], 1.0]
    for step, a, b, noise in zip(steps, alpha_bars, following, noises, strict=True):
        x = clamp(x)
        output = target(x, step)
        if prediction == "epsilon":
            x0 = (x - (1 - a) ** 0.5 * output) / a**0.5
        elif prediction == "x0":
            x0 = output
        else:
            x0 = a**0.5 * x - (1 - a) ** 0.5 * output
        x0 = clip(x0)
        if eta == 0:
            epsilon = (x - a**0.5 * x0) / (1 - a) ** 0.5
            x = b**0.5 * (x / a**0.5 + (((1 - b) / b) ** 0.5 - ((1 - a) / a) ** 0.5) * epsilon)
        else:
            beta = 1 - a / b
            mean = b**0.5 * beta / (1 - a) * x0 + (a / b) ** 0.5 * (1 - b) / (1 - a) * x
            x = mean + ((1 - b) / (1 - a) * beta) ** 0.5 * noise
    return clamp(x)


def _numpy_dpm_solver(target, noises, *, start, alpha_bars, steps, clamp, clip, **_):
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2, of a network that predicts x_0."""
    alpha, sigma = alpha_bars**0.5, (1 - alpha_bars) ** 0.5
    lambdas = np.log(alpha / sigma)
    x, before = start, None
    for i, step in enumerate(steps):
        x = clamp(x)
        x0 = clip(target(x, step))
        if i + 1 == len(steps):
            return clamp(x0)
        h = lambdas[i + 1] - lambdas[i]
        direction = x0
        if before is not None:
            r = (lambdas[i] - lambdas[i - 1]) / h
            direction = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * (np.exp(-h) - 1) * direction
        before = x0


@pytest.mark.parametrize(
    ("prediction", "order", "eta"),
    [("epsilon", 1, 0.0), ("v", 1, 0.0), ("x0", 1, 1.0), ("v", 1, 1.0), ("x0", 2, 0.0)],
)
def test_sampler_equals_an_independent_loop(prediction, order, eta):
    # A schedule bounded away from 0 does not amplify float32 rounding.
    alpha_bar = np.linspace(0.98, 0.05, 8).astype(np.float32)
    temperature, shape, key = 0.5, (16, 3, 2), jax.random.key(1)
    key_init, key_steps = jax.random.split(key)
    draw = lambda key: temperature * np.asarray(jax.random.normal(key, shape), np.float64)
    # Any smooth function of both arguments will do for a network.
    denoise = lambda np_, x, step: np_.sin(3.0 * x) + 0.1 * np_.asarray(step, float)
    first = np.linspace(-1, 1, 32).reshape(16, 2).astype(np.float32)

    def numpy_clamp(x):
        x = x.copy()
        x[:, 0] = first
        return x

    expected = (_numpy_ddim if order == 1 else _numpy_dpm_solver)(
        lambda x, step: denoise(np, x, step),
        [draw(jax.random.fold_in(key_steps, i)) for i in range(4)],
        start=draw(key_init),
        alpha_bars=alpha_bar[[7, 4, 2, 0]].astype(np.float64),
        steps=[7, 4, 2, 0],
        prediction=prediction,
        eta=eta,
        clamp=numpy_clamp,
        clip=lambda x: np.clip(x, -0.8, 1.2),
    )
    actual = _sample(
        lambda x, step: denoise(jnp, x, step),
        key,
        shape,
        Process(jnp.asarray(alpha_bar), prediction),
        sampling_steps=4,
        spacing="quadratic",
        order=order,
        eta=eta,
        temperature=temperature,
        clamp=lambda x: x.at[:, 0].set(first),
        clip=lambda x: jnp.clip(x, -0.8, 1.2),
    )
    # Float32 rounding of 1e-7 grows by at most 1 / sqrt(.05) and the slope 3 in four steps.
    np.testing.assert_allclose(actual, expected, atol=5e-5)


def test_ancestral_samples_follow_the_data_distribution():
    # 100 steps leave a few per cent of error in the variance, below what 2000 samples show.
    alpha_bar = diffusion.cosine_schedule(100)
    samples = _sample(
        _ideal_denoiser(alpha_bar, "v"),
        jax.random.key(2),
        (2000,),
        Process(alpha_bar, "v"),
        sampling_steps=100,
        eta=1.0,
    )
    assert stats.kstest(samples, stats.norm(MEAN, STD).cdf).pvalue > 0.01
    # The test has power: it tells a standard deviation 15% off.
    assert stats.kstest(samples, stats.norm(MEAN, 1.15 * STD).cdf).pvalue < 0.01


def test_temperature_zero_ignores_the_key():
    alpha_bar = diffusion.cosine_schedule(20)

    @jax.jit
    def draw(key, temperature):
        sampler = Sampler(sampling_steps=4, order=1, eta=1.0, temperature=temperature)
        denoise, process = _ideal_denoiser(alpha_bar, "v"), Process(alpha_bar, "v")
        return sampler(denoise, key, (5,), process=process, clamp=keep, clip=keep)

    first, second = jax.random.key(0), jax.random.key(1)
    np.testing.assert_array_equal(draw(first, 0.0), draw(second, 0.0))
    assert np.all(draw(first, 1.0) != draw(second, 1.0))


def test_known_part_is_exact_at_every_evaluation_and_at_the_end():
    alpha_bar = diffusion.cosine_schedule(20)
    first = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)

    def denoise(x, step):
        # One wrong bit anywhere poisons the sample.
        exact = jnp.all(x[:, 0] == first)
        return jnp.where(exact, _ideal_denoiser(alpha_bar, "v")(x, step), jnp.nan)

    samples = _sample(
        denoise,
        jax.random.key(0),
        (4, 3, 2),
        Process(alpha_bar, "v"),
        sampling_steps=5,
        eta=1.0,
        clamp=lambda x: x.at[:, 0].set(first),
    )
    assert np.all(np.isfinite(samples))
    np.testing.assert_array_equal(samples[:, 0], first)


# --- settings -------------------------------------------------------------------------------


def _values(**changes):
    return settings.defaults(SamplerSettings) | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": 3}, "config.rollout.order: expected one of 1, 2, got 3"),
        ({"eta": 0.5}, "config.rollout.eta: expected 0 with config.rollout.order 2"),
        ({"order": 1, "eta": -0.1}, "config.rollout.eta: expected a number at least 0"),
        ({"sampling_steps": 0}, "config.rollout.sampling_steps: expected a whole number"),
        ({"temperature": -1.0}, "config.rollout.temperature: expected a number at least 0"),
        ({"guidance": float("nan")}, "config.rollout.guidance: expected a number"),
    ],
)
def test_settings_that_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        settings.build(SamplerSettings, _values(**changes), name="config.rollout")


def test_a_sampler_checks_itself_and_its_process():
    with pytest.raises(UserError, match=r"expected 0 with sampler.order 2"):
        Sampler(order=2, eta=0.5)
    Sampler(sampling_steps=10).check_steps(Process.cosine(10, "v"))
    with pytest.raises(UserError, match=r"expected 1 to 10 .*got 11"):
        Sampler(sampling_steps=11).check_steps(Process.cosine(10, "v"))


def test_a_sampler_of_a_section_takes_its_own_settings():
    @dataclasses.dataclass(frozen=True)
    class Section(SamplerSettings):
        other: int = 3

    values = {"sampling_steps": 5, "order": 1, "spacing": "quadratic", "eta": 0.25}
    values |= {"guidance": 1.5, "temperature": 0.5}
    assert Sampler.of(Section(**values)) == Sampler(**values)


def test_guidance_is_the_samplers():
    denoise = lambda x, step, condition, conditioned: condition * conditioned[:, None] + 0.0 * x
    x, condition = jnp.zeros((3, 2)), jnp.ones((3, 1))
    guided = Sampler(guidance=1.5).guided(denoise, condition)(x, jnp.int32(0))
    np.testing.assert_allclose(guided, 1.5)
