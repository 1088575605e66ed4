"""Diffusion against closed forms: Gaussian data, the DDPM posterior and the DDIM ODE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dawm_jax.models import diffusion
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


def _sample(denoise, key, shape, *, alpha_bar, num_steps, **options):
    options = {
        "prediction": "v",
        "order": 1,
        "eta": 0.0,
        "temperature": 1.0,
        "clamp": keep,
        "clip": keep,
    } | options
    run = lambda key: diffusion.ddim_sample(
        denoise, key, shape, alpha_bar=alpha_bar, num_steps=num_steps, **options
    )
    return np.asarray(jax.jit(run)(key))


# --- schedule and parameterisations ---------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1, 10, 1000])
def test_cosine_schedule_equals_the_papers_loop(num_steps):
    f = lambda t: np.cos((t / num_steps + 0.008) / 1.008 * np.pi / 2) ** 2
    expected, product = [], 1.0
    for k in range(1, num_steps + 1):
        product *= 1.0 - min(1.0 - f(k) / f(k - 1), 0.999)
        expected.append(product)
    actual = diffusion.cosine_schedule(num_steps)
    assert actual.shape == (num_steps,) and actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-6)  # float32 rounding


def test_cosine_schedule_falls_from_one_to_zero():
    alpha_bar = np.asarray(diffusion.cosine_schedule(1000))
    assert np.all(np.diff(alpha_bar) < 0)
    # One step of 1000 removes about 2 pi / 1000 * tan(.008) / 1.008 of the signal's power.
    assert 1 - 1e-4 < alpha_bar[0] < 1
    # The last beta is clipped at .999.
    assert 0 < alpha_bar[-1] < 1e-3 * alpha_bar[-2] * 1.01


def test_noise_preserves_the_variance():
    alpha_bar = diffusion.cosine_schedule(50)
    one, zero = jnp.ones(50), jnp.zeros(50)
    signal = np.asarray(diffusion.add_noise(one, zero, alpha_bar))
    noise = np.asarray(diffusion.add_noise(zero, one, alpha_bar))
    np.testing.assert_allclose(signal**2, alpha_bar, rtol=1e-6)
    np.testing.assert_allclose(signal**2 + noise**2, 1.0, rtol=1e-6)
    both = diffusion.add_noise(3 * one, -2 * one, alpha_bar)
    np.testing.assert_allclose(both, 3 * signal - 2 * noise, atol=1e-6)


def _noisy_batch():
    rng = np.random.default_rng(0)
    x0, noise = (jnp.asarray(rng.normal(size=(32, 3)), jnp.float32) for _ in range(2))
    alpha_bar = jnp.asarray(rng.uniform(0.01, 0.99, (32, 1)), jnp.float32)
    return x0, noise, alpha_bar


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_predicted_x0_inverts_the_target(prediction):
    x0, noise, alpha_bar = _noisy_batch()
    x = diffusion.add_noise(x0, noise, alpha_bar)
    target = diffusion.prediction_target(prediction, x0, noise, alpha_bar)
    actual = diffusion.predicted_x0(prediction, target, x, alpha_bar)
    # Epsilon divides rounding errors of 1e-7 by sqrt(abar) >= .1.
    np.testing.assert_allclose(actual, x0, atol=1e-5)


def test_targets_are_what_their_names_say():
    x0, noise, alpha_bar = _noisy_batch()
    np.testing.assert_array_equal(
        diffusion.prediction_target("epsilon", x0, noise, alpha_bar), noise
    )
    np.testing.assert_array_equal(diffusion.prediction_target("x0", x0, noise, alpha_bar), x0)
    # v is the velocity of x along the angle phi, abar = cos(phi)^2 (Salimans & Ho, app. D).
    phi = jnp.arccos(jnp.sqrt(alpha_bar))
    path = lambda phi: diffusion.add_noise(x0, noise, jnp.cos(phi) ** 2)
    _, velocity = jax.jvp(path, (phi,), (jnp.ones_like(phi),))
    actual = diffusion.prediction_target("v", x0, noise, alpha_bar)
    # sqrt(1 - cos^2) loses up to a digit near abar = .99.
    np.testing.assert_allclose(actual, velocity, atol=1e-4)


# --- DDIM -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_train_steps", "num_steps", "expected"),
    [
        (1001, 4, [1000, 562, 250, 62]),  # 1000 (i / 4)^2; numpy rounds halves to even
        (100, 5, [99, 63, 36, 16, 4]),
        (6, 5, [5, 3, 2, 1, 0]),  # where squares would meet, one apart
        (5, 5, [4, 3, 2, 1, 0]),
        (7, 1, [6]),
        (1, 1, [0]),
    ],
)
def test_ddim_steps(num_train_steps, num_steps, expected):
    assert diffusion.ddim_steps(num_train_steps, num_steps).tolist() == expected


def test_ddim_steps_are_distinct_and_start_at_the_noisiest():
    for num_steps in range(1, 51):
        steps = diffusion.ddim_steps(50, num_steps)
        assert len(steps) == num_steps and steps[0] == 49 and steps[-1] >= 0
        assert np.all(np.diff(steps) < 0)


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
    draw = lambda n: _sample(denoise, key, shape, alpha_bar=alpha_bar, num_steps=n, order=order)
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
    denoise = lambda np_, x, step: np_.sin(3.0 * x) + 0.1 * step
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
        alpha_bar=jnp.asarray(alpha_bar),
        num_steps=4,
        prediction=prediction,
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
        alpha_bar=alpha_bar,
        num_steps=100,
        eta=1.0,
    )
    assert stats.kstest(samples, stats.norm(MEAN, STD).cdf).pvalue > 0.01
    # The test has power: it tells a standard deviation 15% off.
    assert stats.kstest(samples, stats.norm(MEAN, 1.15 * STD).cdf).pvalue < 0.01


def test_temperature_zero_ignores_the_key():
    alpha_bar = diffusion.cosine_schedule(20)

    @jax.jit
    def draw(key, temperature):
        return diffusion.ddim_sample(
            _ideal_denoiser(alpha_bar, "v"),
            key,
            (5,),
            alpha_bar=alpha_bar,
            num_steps=4,
            prediction="v",
            order=1,
            eta=1.0,
            temperature=temperature,
            clamp=keep,
            clip=keep,
        )

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
        alpha_bar=alpha_bar,
        num_steps=5,
        eta=1.0,
        clamp=lambda x: x.at[:, 0].set(first),
    )
    assert np.all(np.isfinite(samples))
    np.testing.assert_array_equal(samples[:, 0], first)


# --- guidance -------------------------------------------------------------------------------


def _guidance_case():
    """A row-wise denoiser that uses all it is given, and records its batch sizes."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    condition = {"a": draw(6, 2), "r": draw(6)}
    sizes = []

    def denoise(x, step, condition, conditioned):
        sizes.append(len(x))
        given = jnp.sin(condition["r"])[:, None] * conditioned[:, None]
        return jnp.tanh(x + given) + condition["a"] * step

    return denoise, condition, draw(6, 2), jnp.float32(0.3), sizes


def _two_evaluations(denoise, condition, x, step):
    """Conditional and unconditional prediction, each on its own."""
    return (denoise(x, step, condition, jnp.full(6, value)) for value in (1.0, 0.0))


def test_guidance_zero_is_unconditional_and_one_conditional():
    denoise, condition, x, step, sizes = _guidance_case()
    conditional, unconditional = _two_evaluations(denoise, condition, x, step)
    assert np.all(np.asarray(conditional) != np.asarray(unconditional))
    sizes.clear()
    for weight, expected in ((0.0, unconditional), (1.0, conditional)):
        actual = diffusion.guide(denoise, condition, weight=weight)(x, step)
        np.testing.assert_array_equal(actual, expected)
    assert sizes == [6, 6]  # no doubled batch where one half would be thrown away


@pytest.mark.parametrize("weight", [-0.5, 0.25, 1.2])
def test_guidance_is_linear_in_the_weight(weight):
    denoise, condition, x, step, sizes = _guidance_case()
    conditional, unconditional = map(np.asarray, _two_evaluations(denoise, condition, x, step))
    sizes.clear()
    actual = diffusion.guide(denoise, condition, weight=weight)(x, step)
    expected = (1 - weight) * unconditional + weight * conditional
    np.testing.assert_allclose(actual, expected, atol=2e-6)  # float32 rounding
    assert sizes == [12]  # both predictions in one evaluation


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diffusion.cosine_schedule(0), "diffusion steps: expected at least 1, got 0"),
        (
            lambda: diffusion.prediction_target("eps", *3 * [jnp.ones(2)]),
            "prediction: expected one of epsilon, x0, v, got 'eps'",
        ),
        (
            lambda: diffusion.predicted_x0("score", *3 * [jnp.ones(2)]),
            "prediction: expected one of epsilon, x0, v, got 'score'",
        ),
        (lambda: diffusion.ddim_steps(10, 0), r"sampling steps: expected 1 to 10 .*got 0"),
        (lambda: diffusion.ddim_steps(10, 11), r"sampling steps: expected 1 to 10 .*got 11"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize(
    ("order", "eta", "message"), [(3, 0.0, "expected 1 or 2, got 3"), (2, 0.5, "expected eta 0")]
)
def test_orders_that_are_refused(order, eta, message):
    with pytest.raises(UserError, match=message):
        diffusion.check_order(order, eta)
