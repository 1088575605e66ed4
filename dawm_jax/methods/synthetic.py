"""Generated windows as rows that agents learn from: transitions, or value expansions."""

import dataclasses
from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dawm_jax.methods.base import Generated, GeneratingMethod, Method, PolicyMethod
from dawm_jax.models.base import Trainable
from dawm_jax.types import (
    Condition,
    Expansion,
    GeneratedWindow,
    ModelParams,
    Normalizer,
    PolicyFn,
    Returns,
    Transition,
    UserError,
)

TARGET_RULES = ("amplified", "max_fraction")

MethodT = TypeVar("MethodT", bound=Method)


class InferAction(Protocol):
    """An inverse dynamics model with its parameters."""

    def __call__(self, state: jax.Array, next_state: jax.Array, /) -> jax.Array:
        """Standardised [..., S], [..., S] -> actions [..., A] in [-1, 1]."""


@dataclasses.dataclass(frozen=True, eq=False)
class TargetReturn:
    """The return-to-go that a generated window aims at.

    Attributes:
      rule: "amplified" asks for the start's own return plus (factor - 1) of its magnitude. The
        bound is the larger of the data's largest return and the start's own one (GTA,
        2405.16907, amplifies likewise). "max_fraction" asks every start for that fraction of
        the data's range of returns, counted from the smallest.
      factor: factor of the rule.
      normalizer: constants fitted on the training data, among them the range of returns.
    """

    rule: str
    factor: float
    normalizer: Normalizer

    def __call__(self, return_to_go: jax.Array) -> jax.Array:
        """The targets of real starts; scaled returns-to-go, [B] -> [B].

        Raises:
          UserError: an unknown rule.
        """
        low, high = self.normalizer.return_low, self.normalizer.return_high
        if self.rule == "amplified":
            target = return_to_go + (self.factor - 1.0) * jnp.abs(return_to_go)
            # A start outside the training episodes may have a return above the data's largest.
            # Its bound is its own return, so that the bound never lowers the target below it.
            return jnp.minimum(target, jnp.maximum(high, return_to_go))
        if self.rule == "max_fraction":
            return jnp.full_like(return_to_go, low + self.factor * (high - low))
        raise UserError(
            f"target rule: expected one of {', '.join(TARGET_RULES)}, got {self.rule!r}"
        )

    def aim(self, condition: Condition) -> Condition:
        """The condition with the target in place of the start's own return-to-go."""
        return condition._replace(return_to_go=self(condition.return_to_go))


def complete(
    window: GeneratedWindow, first_action: jax.Array, infer: InferAction
) -> GeneratedWindow:
    """Windows of states with their actions.

    The first action is the real one; the inverse dynamics model infers the others,
    a_{t+k} = f(s_{t+k}, s_{t+k+1}) for k >= 1 (DAWM, 2509.19538, abstract).

    Args:
      window: [B].
      first_action: [B, A] in [-1, 1].
      infer: the inverse dynamics model.
    """
    chex.assert_rank(window.states, 3)
    later = infer(window.states[:, 1:-1], window.states[:, 2:])
    return window._replace(actions=jnp.concatenate([first_action[:, None], later], axis=1))


def to_transitions(window: GeneratedWindow, *, next_action: bool = False) -> Generated:
    """Windows with actions as one-step transitions.

    Args:
      window: [B], with actions.
      next_action: whether each transition carries the action of the step after it; the last
        step of a window has none.
    """
    chex.assert_rank([window.states, window.rewards, window.terminated], [3, 2, 2])
    chex.assert_equal_shape([window.rewards, window.terminated])
    actions = window.actions
    assert actions is not None
    transitions = Transition(
        observation=window.states[:, :-1],
        action=actions,
        reward=window.rewards,
        terminated=window.terminated,
        next_observation=window.states[:, 1:],
    )
    if next_action:
        known = jnp.ones_like(window.rewards).at[:, -1].set(0.0)
        following = jnp.concatenate([actions[:, 1:], actions[:, -1:]], axis=1)
        transitions = transitions._replace(next_action=following, next_action_known=known)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), transitions)
    return Generated(flat, _valid(window).reshape(-1))


def to_expansions(window: GeneratedWindow, condition: Condition) -> Generated:
    """Windows as value expansions of their real starts (DWM, 2402.03570, section 3.3)."""
    expansions = Expansion(
        observation=condition.state,
        action=condition.action,
        reward=window.rewards,
        terminated=window.terminated,
        next_observation=window.states[:, 1:],
        steps=jnp.full(window.rewards.shape[0], window.rewards.shape[1], jnp.int32),
    )
    return Generated(expansions, _valid(window))


def real_expansions(transitions: Transition, *, horizon: int) -> Expansion:
    """Real transitions as expansions of one step, of which the critics' target is one-step.

    Args:
      transitions: leading axes [...], at least one.
      horizon: H of the expansions. Of the H - 1 further steps rewards and terminations are 0 and
        the next observation repeats.

    Returns:
      Expansions with the same leading axes.
    """
    reward = transitions.reward

    def padded(leaf: jax.Array) -> jax.Array:
        return jnp.pad(leaf[..., None], [(0, 0)] * leaf.ndim + [(0, horizon - 1)])

    return Expansion(
        observation=transitions.observation,
        action=transitions.action,
        reward=padded(reward),
        terminated=padded(transitions.terminated),
        next_observation=jnp.repeat(transitions.next_observation[..., None, :], horizon, axis=-2),
        steps=jnp.ones(reward.shape, jnp.int32),
    )


def _valid(window: GeneratedWindow) -> jax.Array:
    """Which steps are not after a termination, [B, H] bool."""
    return jnp.cumsum(window.terminated, axis=1) - window.terminated == 0


@dataclasses.dataclass(frozen=True, eq=False)
class _Wrapper(Generic[MethodT]):
    """A method with the models of another; what it generates is its own.

    Attributes:
      method: the other.
    """

    method: MethodT

    @property
    def models(self) -> Mapping[str, Trainable]:
        """Those of the method."""
        return self.method.models


@dataclasses.dataclass(frozen=True, eq=False)
class FirstSteps(_Wrapper[GeneratingMethod]):
    """A method of transitions, of whose windows only each first step is kept.

    The action of a first step is real. Both this and the whole method give equally many
    transitions if this one generates `horizon` times as many windows.

    Attributes:
      method: generates transitions.
      horizon: H of its windows.
    """

    horizon: int

    def generate(self, params: ModelParams, key: jax.Array, condition: Condition) -> Generated:
        """Transitions [B] and valid [B]; see `GeneratingMethod`."""
        generated = self.method.generate(params, key, condition)
        return jax.tree.map(lambda leaf: leaf[:: self.horizon], generated)


@dataclasses.dataclass(frozen=True, eq=False)
class MultiStep(_Wrapper[GeneratingMethod]):
    """A method of transitions, each with the return over the steps from there on.

    A return ends with its window: the n steps of the last n - 1 transitions are fewer.

    Attributes:
      method: generates transitions, step after step of each window.
      horizon: H of its windows.
      returns: steps and discount.
    """

    horizon: int
    returns: Returns

    def generate(self, params: ModelParams, key: jax.Array, condition: Condition) -> Generated:
        """Transitions [B * H] and valid [B * H]; see `GeneratingMethod`."""
        rows, valid = self.method.generate(params, key, condition)
        assert isinstance(rows, Transition)
        windows = jax.tree.map(lambda leaf: leaf.reshape(-1, self.horizon, *leaf.shape[1:]), rows)
        returned = jax.tree.map(
            lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), self._returned(windows)
        )
        return Generated(returned, valid)

    def _returned(self, windows: Transition) -> Transition:
        """Transitions [B, H] as returns."""
        gamma, first = self.returns.discount, np.arange(self.horizon)
        last = np.minimum(first + self.returns.steps, self.horizon) - 1
        reward, alive = jnp.zeros_like(windows.reward), jnp.ones_like(windows.terminated)
        for step in range(min(self.returns.steps, self.horizon)):
            inside, index = first + step <= last, np.minimum(first + step, last)
            reward += jnp.where(inside, gamma**step * alive * windows.reward[:, index], 0.0)
            alive = jnp.where(inside, alive * (1.0 - windows.terminated[:, index]), alive)
        final = jax.tree.map(lambda leaf: leaf[:, last], windows)
        return final._replace(
            observation=windows.observation,
            action=windows.action,
            reward=reward,
            terminated=1.0 - alive,
            discount=jnp.broadcast_to(
                jnp.asarray(gamma ** (last - first + 1), reward.dtype), reward.shape
            ),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class WithPolicy(_Wrapper[PolicyMethod]):
    """A `GeneratingMethod`: a method with the policy that its models are rolled out with.

    Attributes:
      method: generates expansions.
      act: the policy.
    """

    act: PolicyFn

    def generate(self, params: ModelParams, key: jax.Array, condition: Condition) -> Generated:
        """Expansions [B]; see `GeneratingMethod`."""
        return self.method.expand(params, key, condition, act=self.act)
