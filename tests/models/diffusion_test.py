"""Diffusion against closed forms: schedule, parameterisations, visited steps and guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dawm_jax.models import diffusion
from dawm_jax.types import UserError

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


def test_a_process_has_its_schedule_and_prediction():
    process = diffusion.Process.cosine(7, "x0")
    np.testing.assert_array_equal(process.alpha_bar, diffusion.cosine_schedule(7))
    assert process.num_steps == 7 and process.prediction == "x0"


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


# --- visited steps ---------------------------------------------------------------------------


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
def test_quadratic_steps(num_train_steps, num_steps, expected):
    steps = diffusion.visited_steps(np.ones(num_train_steps), num_steps, "quadratic")
    assert steps.tolist() == expected


def test_noise_steps_are_edms():
    """Karras et al. 2022, eq. 5, by a search for the step of the nearest larger noise."""
    alpha_bar = np.asarray(diffusion.cosine_schedule(1000), float)
    sigma = np.sqrt(1.0 - alpha_bar) / np.sqrt(alpha_bar)
    steps = diffusion.visited_steps(alpha_bar, 8, "noise")
    assert steps[0] == 999  # pure noise, where sampling starts
    for index in range(1, 8):
        wanted = (80 ** (1 / 7) + index / 7 * (0.03 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        assert sigma[steps[index] - 1] < wanted <= sigma[steps[index]]


@pytest.mark.parametrize("spacing", diffusion.SPACINGS)
def test_visited_steps_are_distinct_and_start_at_the_noisiest(spacing):
    alpha_bar = diffusion.cosine_schedule(50)
    for num_steps in range(1, 51):
        steps = diffusion.visited_steps(alpha_bar, num_steps, spacing)
        assert len(steps) == num_steps and steps[0] == 49 and steps[-1] >= 0
        assert np.all(np.diff(steps) < 0)


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
        (
            lambda: diffusion.visited_steps(np.ones(10), 0, "noise"),
            r"sampling_steps: expected 1 to 10 .*got 0",
        ),
        (
            lambda: diffusion.visited_steps(np.ones(10), 11, "noise"),
            r"sampling_steps: expected 1 to 10 .*got 11",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
