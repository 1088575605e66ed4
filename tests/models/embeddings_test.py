"""What denoisers share: activations, sinusoids, conditions and the initialisation."""

import denoiser_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dawm_jax.models import embeddings


def test_mish_equals_its_formula():
    x = np.linspace(-30.0, 30.0, 601)
    expected = x * np.tanh(np.logaddexp(0.0, x))
    actual = embeddings.mish(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    gradient = jax.vmap(jax.grad(embeddings.mish))(jnp.asarray([-100.0, 100.0]))
    np.testing.assert_allclose(gradient, [0.0, 1.0], atol=1e-6)  # no overflow


def test_sinusoidal_embedding_equals_its_formula():
    """sin and cos of step / 10000^(i / (n - 1)), Vaswani et al. as in DDPM's code."""
    steps = np.array([0.0, 1.0, 99.0], np.float32)
    rates = [1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3), 1e-4]
    expected = [[f(s * r) for f in (np.sin, np.cos) for r in rates] for s in steps]
    # float32 angles up to 99 are exact to 99 * 2^-24 = 6e-6.
    np.testing.assert_allclose(
        embeddings.sinusoidal_embedding(jnp.asarray(steps), 8), expected, atol=1e-5
    )


class _TwoLayers(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(name="norm")(nn.Dense(50, name="first")(x))
        offset = self.param("offset", nn.initializers.zeros, (50,))
        return nn.Dense(40, name="second")(x + offset[None])


def test_initialisation_follows_the_rule():
    asked = {}

    def bound(path, shape, kernel):
        asked["/".join(path)] = (shape, kernel)
        return {"kernel": 2.0, "offset": 0.5}.get(path[-1], 0.0)

    network, x = _TwoLayers(), jnp.zeros((1, 30))
    params = embeddings.init_in_one_draw(network, jax.random.key(0), x, bound=bound)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert asked["params/first/bias"] == ((50,), (30, 50))
    assert asked["params/norm/scale"] == ((50,), None)
    layers = jax.tree.map(np.asarray, params["params"])
    np.testing.assert_array_equal(layers["norm"]["scale"], 1.0)
    for name in ("norm", "first", "second"):
        np.testing.assert_array_equal(layers[name]["bias"], 0.0)
    drawn = [layers["first"]["kernel"] / 2, layers["second"]["kernel"] / 2, layers["offset"] / 0.5]
    everything = np.concatenate([leaf.ravel() for leaf in drawn])
    assert -1.0 <= everything.min() < -0.99 and 0.99 < everything.max() <= 1.0
    assert len(np.unique(everything)) > 0.99 * len(everything)  # no slice is used twice


def test_condition_embedding_equals_numpy():
    with jax.enable_x64(True):
        module = embeddings.ConditionEmbedding(8, on_action=True, dtype=jnp.float64)
        _, step, condition = reference.inputs()
        rng = np.random.default_rng(0)
        shapes = jax.eval_shape(module.init, jax.random.key(0), step, *condition)
        params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
        actual = module.apply(params, step, *condition)
        expected = reference.condition_embedding(params["params"], step, condition, 8)
        # The factor log(10000) of the frequencies is rounded to float32 nowhere.
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)
