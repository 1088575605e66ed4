"""Counted operations against closed forms and against the compiler's count."""

import jax
import jax.numpy as jnp
import pytest

from dawm_jax.benchmark import flops
from dawm_jax.models.networks import Mlp


def test_a_matrix_product_counts_2mnk():
    count = flops.matmul_flops(jnp.dot, jnp.ones((3, 5)), jnp.ones((5, 7)))
    assert count == 2 * 3 * 5 * 7


def test_a_batched_product_counts_its_batch_once():
    count = flops.matmul_flops(jnp.matmul, jnp.ones((4, 3, 5)), jnp.ones((4, 5, 7)))
    assert count == 4 * 2 * 3 * 5 * 7


def test_a_gradient_is_two_more_products():
    loss = lambda w, x: jnp.square(x @ w).sum()
    gradients = jax.grad(loss, argnums=(0, 1))
    count = flops.matmul_flops(gradients, jnp.ones((5, 7)), jnp.ones((3, 5)))
    assert count == 3 * 2 * 3 * 5 * 7


def test_every_iteration_of_a_loop_counts_and_nested_programs_too():
    @jax.jit
    def power(x):
        return jax.lax.scan(lambda y, _: (jax.jit(jnp.dot)(y, x), None), x, None, length=6)[0]

    assert flops.matmul_flops(power, jnp.ones((4, 4))) == 6 * 2 * 4**3


def test_the_dearer_branch_counts():
    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert flops.matmul_flops(either, jnp.ones((4, 4))) == 2 * 2 * 4**3


def test_a_loop_of_unknown_length_is_refused():
    def until(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 9.0, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="unknown length"):
        flops.matmul_flops(until, jnp.ones((2, 2)))


def test_agrees_with_the_compiler_on_a_network():
    network, x = Mlp((32, 32), 4), jnp.ones((64, 16))
    params = network.init(jax.random.key(0), x)
    loss = jax.grad(lambda params: jnp.square(network.apply(params, x)).sum())
    analysed = jax.jit(loss).lower(params).cost_analysis()["flops"]
    # The compiler also counts additions, activations and their gradients.
    assert 0.85 * analysed < flops.matmul_flops(loss, params) < analysed
