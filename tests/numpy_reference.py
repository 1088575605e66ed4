"""What the agents' NumPy oracles share: an MLP, Adam, and gradients by finite differences.

Nothing here uses JAX's numerics; `jax.tree` only walks nested dictionaries.
"""

import jax
import numpy as np

# Central differences in float64 err by about STEP^2 + 1e-16 / STEP, here 1e-10.
STEP = 1e-5
# Hence what tests on float64 allow between JAX and this module.
TOLERANCE = {"rtol": 1e-7, "atol": 1e-9}


def jit(function, **kwargs):
    """`jax.jit` that compiles quickly rather than well: these programs run once."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=options, **kwargs)


def batch_at(batches, index=0):
    """The minibatch at an index of the leading axis."""
    return jax.tree.map(lambda leaf: leaf[index], batches)


def mlp(layers, x):
    """ReLU hidden layers and a linear output, from flax's Dense_0, Dense_1, ...

    Where there are LayerNorm_0, LayerNorm_1, ..., one follows every ReLU (Ba et al. 2016,
    eqs. 3 and 4, with flax's 1e-6 added to the variance).
    """
    depth = sum(name.startswith("Dense") for name in layers)
    for index in range(depth):
        layer = layers[f"Dense_{index}"]
        x = x @ layer["kernel"] + layer["bias"]
        if index < depth - 1:
            x = np.maximum(x, 0.0)
            if f"LayerNorm_{index}" in layers:
                layer = layers[f"LayerNorm_{index}"]
                deviation = x - x.mean(-1, keepdims=True)
                variance = (deviation**2).mean(-1, keepdims=True)
                x = layer["scale"] * deviation / np.sqrt(variance + 1e-6) + layer["bias"]
    return x


def q_values(critics, observation, action):
    """Every critic's Q(s, a), [E, B]; the parameters have a leading axis E."""
    layers = critics["params"]["VmapMlp_0"]
    x = np.concatenate([observation, action], axis=1)
    members = len(layers["Dense_0"]["bias"])
    member = lambda index: jax.tree.map(lambda leaf: leaf[index], layers)
    return np.stack([mlp(member(index), x)[:, 0] for index in range(members)])


def gradient(loss, params):
    """Central differences of a scalar function of a tree of arrays."""
    leaves, structure = jax.tree.flatten(params)
    leaves = [np.array(leaf) for leaf in leaves]
    tree = jax.tree.unflatten(structure, leaves)
    result = [np.zeros_like(leaf) for leaf in leaves]
    for leaf, slope in zip(leaves, result, strict=True):
        for index in np.ndindex(leaf.shape):
            middle = leaf[index]
            leaf[index] = middle + STEP
            above = loss(tree)
            leaf[index] = middle - STEP
            below = loss(tree)
            leaf[index] = middle
            slope[index] = (above - below) / (2 * STEP)
    return jax.tree.unflatten(structure, result)


def adam_step(slope, params, opt_state, rate):
    """Kingma & Ba 2015, algorithm 1, on optax's state (moments, step of the schedule)."""
    moments, schedule = opt_state
    count = int(moments.count) + 1
    mu = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments.mu, slope)
    nu = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, moments.nu, slope)
    params = jax.tree.map(
        lambda p, m, v: (
            p - rate * (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
        ),
        params,
        mu,
        nu,
    )
    moments = moments._replace(count=np.int32(count), mu=mu, nu=nu)
    return params, (moments, schedule._replace(count=schedule.count + 1))


def polyak(new, target, tau):
    """tau new + (1 - tau) target."""
    return jax.tree.map(lambda n, t: tau * n + (1 - tau) * t, new, target)


def in_training(state, *, count, seed):
    """A float64 NumPy copy of an agent's state that looks trained for `count` steps.

    Every parameter is random, so that targets differ from what they follow and no bias is
    0. The moments are of the size of a gradient: a first Adam step from zero moments shows
    only a gradient's sign, this one its size.
    """
    rng = np.random.default_rng(seed)

    def replace(path, leaf):
        if np.issubdtype(leaf.dtype, np.integer):
            return np.int32(count)
        names = [getattr(entry, "name", None) for entry in path]
        if "nu" in names:
            return rng.uniform(0.05, 0.2, leaf.shape)
        return rng.normal(0.0, 0.1 if "mu" in names else 0.7, leaf.shape)

    return jax.tree_util.tree_map_with_path(replace, state)
