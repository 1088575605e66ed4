"""Observation columns that follow from the others, inferred instead of generated.

Robots observe their state, which is positions and velocities, and what a simulator derives from
the state and the action before it: contact forces, inertias, forces of the actuators. Such columns
outnumber the state (78 of Ant's 105 columns, 303 of Humanoid's 348), rest at 0 most of the time and
jump. In tokens they take most of the denoising loss, and the state is generated badly
(docs/choices.md). So the diffusion generates the state alone. A regression of pairs of successive
states infers the other columns of the second one.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dawm_jax.data import normalizer as normalizing
from dawm_jax.models.networks import Mlp
from dawm_jax.types import Normalizer, Params, Window


@dataclasses.dataclass(frozen=True, eq=False)
class DerivedColumns:
    """f(s_t, s_{t+1}) -> the other columns of the observation at t + 1.

    S' is the number of columns of the state, which come first, and S that of the observation.

    Attributes:
      network: from a pair of states, 2 S' values, to S - S' columns.
      normalizer: constants fitted on the training data, of all S columns.
      states: the same constants of the S' columns of the state.
    """

    network: Mlp
    normalizer: Normalizer
    states: Normalizer

    @property
    def state_size(self) -> int:
        """S'."""
        return self.states.observation_mean.shape[0]

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters; `key` is consumed."""
        return self.network.init(key, jnp.zeros((1, 2 * self.state_size)))

    def loss(self, params: Params, window: Window) -> jax.Array:
        """Mean squared error over the real steps, a scalar, divided by B H (S - S').

        Args:
          params: parameters of the network.
          window: [B, ...] windows of whole observations.
        """
        states, derived = jnp.split(window.states, [self.state_size], axis=-1)
        squared = jnp.square(self._inferred(params, states) - derived[:, 1:])
        return jnp.mean(squared * window.mask[..., None])

    def complete(self, params: Params, states: jax.Array, first: jax.Array) -> jax.Array:
        """Whole observations of windows of states.

        The inferred columns are clipped at the data's smallest and largest values.

        Args:
          params: parameters of the network.
          states: [B, H + 1, S'], standardised.
          first: [B, S], the observation that each window begins with.

        Returns:
          [B, H + 1, S], standardised.
        """
        constants = self.normalizer
        low, high = (
            normalizing.normalise_observation(constants, bound[None, None])[..., self.state_size :]
            for bound in (constants.observation_low, constants.observation_high)
        )
        inferred = jnp.clip(self._inferred(params, states), low, high)
        derived = jnp.concatenate([first[:, None, self.state_size :], inferred], axis=1)
        return jnp.concatenate([states, derived], axis=-1)

    def _inferred(self, params: Params, states: jax.Array) -> jax.Array:
        """States [B, H + 1, S'] -> derived columns of all but the first, [B, H, S - S']."""
        changes = normalizing.normalise_change(self.states, jnp.diff(states, axis=1))
        return self.network.apply(params, jnp.concatenate([states[:, 1:], changes], axis=-1))


def make(
    hidden: tuple[int, ...], normalizer: Normalizer, states: Normalizer
) -> DerivedColumns | None:
    """The model of the columns that `states` leaves out; None if it leaves out none.

    Args:
      hidden: units of the hidden layers.
      normalizer: constants of all columns.
      states: constants of the columns of the state, as `normalizer.leading` makes them.
    """
    size = normalizer.observation_mean.shape[0] - states.observation_mean.shape[0]
    return DerivedColumns(Mlp(hidden, size), normalizer, states) if size else None
