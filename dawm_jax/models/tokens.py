"""Windows as tokens: what the diffusion model sees of a window, and how a window is read back.

A window of H steps is H + 1 tokens. Token 0 is what is known: the first state, with a reward of 0.
Token k > 0 holds what the k-th step arrives at, as its `Layout` says:
  the state      s_{t+k}, standardised, or
  its change     s_{t+k} - s_{t+k-1}, standardised by the data's changes of one step;
  the reward     r_{t+k-1}, standardised;
  the action     a_{t+k}, for models of actions.

A state in a token may be the first columns of the observation alone, see `models.derived`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dawm_jax.data import normalizer as normalizing
from dawm_jax.types import Condition, GeneratedWindow, Normalizer, Window

STATE_FORMS = ("changes", "absolute")


class Layout(NamedTuple):
    """The channels of a token beside its state, in this order, and the form of the state.

    Attributes:
      actions: token k also holds a_{t+k}. The last token's action, which no step takes, is 0.
      rewards: token k also holds r_{t+k-1}; the model then also classifies terminations.
      changes: tokens after the first hold changes of the state instead of states.
    """

    actions: bool = False
    rewards: bool = True
    changes: bool = False

    def channels(self, state_size: int, action_size: int) -> int:
        """Channels of a token."""
        return state_size + self.actions * action_size + self.rewards


# The layouts of the methods; `_replace(changes=True)` gives each the other form of states.
DAWM = Layout()
JOINT = Layout(actions=True)
STATES = Layout(rewards=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """Turns windows into tokens and back.

    Attributes:
      layout: channels of a token.
      normalizer: constants fitted on the training data, of the observation columns that tokens
        hold (`normalizer.leading`). S is their number here.
    """

    layout: Layout
    normalizer: Normalizer

    @property
    def state_size(self) -> int:
        """S, observation columns in a token."""
        return self.normalizer.observation_mean.shape[0]

    @property
    def channels(self) -> int:
        """C, channels of a token."""
        return self.layout.channels(self.state_size, self.normalizer.action_low.shape[0])

    @property
    def inputs(self) -> int:
        """Channels of a token as a denoiser sees it, see `denoiser_input`."""
        return self.channels + self.layout.changes * self.state_size

    def denoiser_input(self, tokens: jax.Array) -> jax.Array:
        """What a denoiser sees of noisy tokens, [B, H + 1, C] -> [B, H + 1, inputs].

        A change says nothing without the state that changes. Each token that holds a change also
        gets the standardised state before it, the first state plus the sum of the noisy changes;
        token 0 gets 0. Tokens of absolute states are seen as they are.
        """
        if not self.layout.changes:
            return tokens
        reached = self._reached(tokens)
        before = jnp.concatenate([jnp.zeros_like(reached[:, :1]), reached[:, :-1]], axis=1)
        return jnp.concatenate([tokens, before], axis=-1)

    def encode(self, window: Window) -> jax.Array:
        """Windows [B] of whole observations as clean tokens, [B, H + 1, C]."""
        parts = [self._state_channels(self.state_of(window.states))]
        if self.layout.actions:
            assert window.actions is not None
            parts.append(jnp.pad(window.actions, ((0, 0), (0, 1), (0, 0))))
        if self.layout.rewards:
            reward = (window.rewards - self.normalizer.reward_mean) / self.normalizer.reward_std
            parts.append(jnp.pad(reward, ((0, 0), (1, 0)))[..., None])
        return jnp.concatenate(parts, axis=-1)

    def state_of(self, observations: jax.Array) -> jax.Array:
        """The columns of whole observations that tokens hold, [..., any] -> [..., S]."""
        return observations[..., : self.state_size]

    def first(self, condition: Condition) -> jax.Array:
        """Token 0 of windows that start at a condition, [B, C]."""
        state, action = self.state_of(condition.state), condition.action
        parts = [state, action] if self.layout.actions else [state]
        parts.append(jnp.zeros((len(state), self.layout.rewards), state.dtype))
        return jnp.concatenate(parts, axis=-1)

    def known(self, window: Window) -> jax.Array:
        """Which values of the tokens after the first the data tell, [B, H, 1 or C].

        After a termination the state stays, changes and rewards are 0, as in Diffuser
        (2205.09991): these tokens are known. What follows a time-out is unknown.
        """
        arrived = jnp.maximum(window.mask, window.terminated)[..., None]
        if not self.layout.actions:
            return arrived
        assert window.actions is not None
        # A token's action exists where the next step does.
        acted = jnp.pad(window.mask[:, 1:], ((0, 0), (0, 1)))[..., None]
        action_size = window.actions.shape[-1]
        parts = [(arrived, self.state_size), (acted, action_size), (arrived, self.layout.rewards)]
        return jnp.concatenate([jnp.repeat(part, size, axis=-1) for part, size in parts], axis=-1)

    def states(self, tokens: jax.Array) -> jax.Array:
        """Standardised states of tokens, [B, H + 1, C] -> [B, H + 1, S].

        States after the first are clipped at the data's smallest and largest values.
        """
        reached = self._reached(tokens)
        constants = self.normalizer
        low, high = (
            _row(normalizing.normalise_observation(constants, bound))
            for bound in (constants.observation_low, constants.observation_high)
        )
        return jnp.concatenate([reached[:, :1], jnp.clip(reached[:, 1:], low, high)], axis=1)

    def decode(self, tokens: jax.Array, terminated: jax.Array) -> GeneratedWindow:
        """Tokens of a layout with rewards as windows; `terminated` [B, H] marks their ends."""
        constants = self.normalizer
        return GeneratedWindow(
            states=self.states(tokens),
            rewards=tokens[:, 1:, -1] * constants.reward_std + constants.reward_mean,
            terminated=terminated,
            actions=tokens[:, :-1, self.state_size : -1] if self.layout.actions else None,
        )

    def clip(self, tokens: jax.Array) -> jax.Array:
        """Clips clean tokens [B, H + 1, C] to the smallest and largest tokens of the data.

        Token 0 is known: the caller writes it into the result.
        """
        low, high = self.bounds()
        return jnp.clip(tokens, _row(low), _row(high))

    def bounds(self) -> tuple[jax.Array, jax.Array]:
        """Smallest and largest clean token of the data after the first, [C] each.

        Actions lie in [-1, 1].
        """
        constants = self.normalizer
        changes = (constants.change_low, constants.change_high)
        rewards = (constants.reward_low, constants.reward_high)
        states = (constants.observation_low, constants.observation_high)

        def bound(side: int) -> jax.Array:
            if self.layout.changes:
                parts = [normalizing.normalise_change(constants, changes[side])]
            else:
                parts = [normalizing.normalise_observation(constants, states[side])]
            if self.layout.actions:
                parts.append(jnp.full(constants.action_low.shape, (-1.0, 1.0)[side]))
            if self.layout.rewards:
                reward = (rewards[side] - constants.reward_mean) / constants.reward_std
                parts.append(reward[None])
            return jnp.concatenate(parts)

        return bound(0), bound(1)

    def _reached(self, tokens: jax.Array) -> jax.Array:
        """Standardised states of tokens, not clipped, [B, H + 1, C] -> [B, H + 1, S]."""
        constants = self.normalizer
        channels = self.state_of(tokens)
        if not self.layout.changes:
            return channels
        changes = normalizing.denormalise_change(constants, channels[:, 1:])
        first = channels[:, :1]
        return jnp.concatenate([first, first + jnp.cumsum(changes, axis=1)], axis=1)

    def _state_channels(self, states: jax.Array) -> jax.Array:
        """States [B, H + 1, S] as channels of tokens."""
        if not self.layout.changes:
            return states
        changes = normalizing.normalise_change(self.normalizer, jnp.diff(states, axis=1))
        return jnp.concatenate([states[:, :1], changes], axis=1)


def _row(channels: jax.Array) -> jax.Array:
    """[C] -> [1, 1, C], to go with tokens [B, T, C]."""
    return channels[None, None]
