"""Optimisers, gradient steps, averages and scans against closed forms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dawm_jax.models import optim
from dawm_jax.types import UserError

# float32 rounds at 6e-8; a few dozen operations stay below this.
RTOL = 1e-5


def rates(optimizer, steps):
    """The learning rate of every step: Adam moves by rate * sign(g) while g is constant.

    The gradient is so large that Adam's epsilon (1e-8) vanishes beside it.
    """

    def step(opt_state, _):
        # Optax raises decay rates to its integer count of steps, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(jnp.float32(100.0), opt_state)
        return opt_state, -updates

    opt_state = optimizer.init(jnp.float32(0.0))
    return np.array(jax.jit(lambda s: jax.lax.scan(step, s, length=steps)[1])(opt_state))


@pytest.mark.parametrize("warmup_steps", [0, 5])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_schedules_equal_closed_form(schedule, warmup_steps):
    peak, total = 0.1, 25
    actual = rates(
        optim.adam(peak, schedule=schedule, total_steps=total, warmup_steps=warmup_steps),
        total + 3,
    )
    step = np.arange(total + 3)
    progress = np.clip((step - warmup_steps) / (total - warmup_steps), 0.0, 1.0)
    after = peak * (0.5 * (1 + np.cos(np.pi * progress)) if schedule == "cosine" else 1.0)
    expected = np.where(step < warmup_steps, peak * step / max(warmup_steps, 1), after)
    # The constant schedules' moments and their bias corrections are rounded in float32.
    np.testing.assert_allclose(actual, expected, rtol=10 * RTOL, atol=1e-7 * peak)
    if schedule == "cosine":
        np.testing.assert_allclose(actual[total:], 0.0, atol=1e-7 * peak)


def test_cosine_with_nothing_left_after_the_warmup():
    """A run no longer than its warm-up must not divide by 0."""
    actual = rates(optim.adam(1.0, schedule="cosine", total_steps=4, warmup_steps=4), 4)
    np.testing.assert_allclose(actual, [0.0, 0.25, 0.5, 0.75], rtol=10 * RTOL)


def test_unknown_schedule():
    with pytest.raises(UserError, match="expected 'constant' or 'cosine', got 'linear'"):
        optim.adam(0.1, schedule="linear", total_steps=10)


CENTRE = jnp.array([1.0, -2.0])


def quadratic(params):
    loss = 0.5 * jnp.sum((params - CENTRE) ** 2)
    return loss, {"loss": loss}


def test_gradient_step_on_a_quadratic():
    """Gradient descent contracts by 1 - rate; the metrics are those before the step."""
    optimizer = optax.sgd(0.25)
    start = jnp.array([3.0, 2.0])
    params, _, metrics = optim.gradient_step(quadratic, start, optimizer.init(start), optimizer)
    np.testing.assert_allclose(params, [2.5, 1.0], rtol=RTOL)
    np.testing.assert_allclose(metrics["loss"], 10.0, rtol=RTOL)


def test_gradient_step_averages_gradients_and_metrics():
    """`mean` sees both, before the optimiser does."""
    optimizer = optax.sgd(0.25)
    start = jnp.array([3.0, 2.0])
    halve = lambda tree: jax.tree.map(lambda x: x / 2, tree)
    params, _, metrics = optim.gradient_step(
        quadratic, start, optimizer.init(start), optimizer, mean=halve
    )
    np.testing.assert_allclose(params, [2.75, 1.5], rtol=RTOL)
    np.testing.assert_allclose(metrics["loss"], 5.0, rtol=RTOL)


def test_fit_step_average_equals_closed_form():
    """average_n = d^n p_0 + (1 - d) sum_k d^(n - k) p_k, and p_k = c + (1 - rate)^k (p_0 - c)."""
    decay, rate, steps = 0.8, 0.25, 6
    optimizer = optax.sgd(rate)
    start = jnp.array([3.0, 2.0])
    state = optim.init_state(start, optimizer)
    np.testing.assert_array_equal(state.average, start)
    step = jax.jit(lambda s: optim.fit_step(s, quadratic, optimizer, ema_decay=decay)[0])
    for _ in range(steps):
        state = step(state)
    centre, first = np.array([1.0, -2.0]), np.array([3.0, 2.0])
    params = [centre + (1 - rate) ** k * (first - centre) for k in range(steps + 1)]
    average = decay**steps * first + (1 - decay) * sum(
        decay ** (steps - k) * params[k] for k in range(1, steps + 1)
    )
    np.testing.assert_allclose(state.params, params[-1], rtol=RTOL)
    np.testing.assert_allclose(state.average, average, rtol=RTOL)


def test_scan_steps_equals_python_loop():
    """Consecutive indices from the first one; each metric is the mean over the steps."""
    key = jax.random.key(0)

    def step(state, index):
        draw = jax.random.normal(jax.random.fold_in(key, index))
        state = {"x": 0.5 * state["x"] + draw}
        return state, {"draw": draw, "index": index.astype(jnp.float32)}

    start = {"x": jnp.float32(1.0)}
    actual = jax.jit(lambda s, first: optim.scan_steps(step, s, first, 5))(start, jnp.int32(7))
    state, draws = start, []
    for index in range(7, 12):
        state, metrics = step(state, jnp.int32(index))
        draws.append(metrics["draw"])
    expected = state, {"draw": np.mean(draws), "index": np.float32(9.0)}
    chex.assert_trees_all_close(actual, expected, rtol=RTOL)
