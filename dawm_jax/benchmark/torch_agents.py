"""TD3+BC and IQL of the PyTorch side; see `dawm_jax.agents` for formulas and sources."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dawm_jax.agents import iql, td3_bc
from dawm_jax.benchmark.torch_common import Learner, Transition, Tuning, move
from dawm_jax.benchmark.torch_networks import Critics, GaussianPolicy, TanhMlp, Value
from dawm_jax.config.schema import Config

# The official implementation's bounds of the log standard deviation of IQL's policy.
_LOG_STD_BOUNDS = (-5.0, 2.0)


class Td3Bc:
    """TD3+BC: a cycle is `policy_delay` critic steps, one actor step, and moved targets.

    Untuned code differs from tuned code in two places, as in published implementations. The
    actor's loss also computes gradients of the critics, which are not used. Targets move one
    tensor at a time.
    """

    def __init__(self, config: Config, state_size: int, action_size: int, tuning: Tuning):
        section = self._section = config.section(td3_bc.Settings)
        self.batches_per_update = section.policy_delay
        self._discount, self._tuned = config.discount, tuning.tuned
        self.actor = TanhMlp(state_size, section.hidden, action_size).to(tuning.device)
        self.critics = Critics(
            state_size + action_size, section.hidden, layer_norm=section.critic_norm
        ).to(tuning.device)
        self.target_actor = _frozen_copy(self.actor)
        self.target_critics = _frozen_copy(self.critics)
        self.actor_learner = Learner(self.actor, section.learning_rate, tuning)
        self.critic_learner = Learner(self.critics, section.learning_rate, tuning)
        self._followed = _without_gradients(self.critics) if tuning.tuned else self.critics
        self._critic_loss = tuning.compile(self.critic_loss)
        self._actor_loss = tuning.compile(self.actor_loss)

    def update(self, batches: Transition, noise: Tensor | None = None) -> None:
        """One cycle on batches [delay, B, ...]; `noise` is standard normal, [delay, B, A]."""
        noise = torch.randn_like(batches.action) if noise is None else noise
        for index in range(self.batches_per_update):
            batch = Transition(*(field[index] for field in batches))
            self.critic_learner.update(self._critic_loss(batch, noise[index]))
        self.actor_learner.update(self._actor_loss(batch))
        _move_targets(
            [self.target_actor, self.target_critics],
            [self.actor, self.critics],
            self._section.tau,
            together=self._tuned,
        )

    def advance(self) -> None:
        """Does nothing after a cycle, because the learning rates are constant."""

    def critic_loss(self, batch: Transition, noise: Tensor) -> Tensor:
        """Sum over the critics of the mean squared TD error (TD3, algorithm 1)."""
        section = self._section
        with torch.no_grad():
            noise = (section.policy_noise * noise).clamp(-section.noise_clip, section.noise_clip)
            action = (self.target_actor(batch.next_observation) + noise).clamp(-1.0, 1.0)
            following = self.target_critics(batch.next_observation, action).amin(0)
            target = batch.reward + self._discount * (1.0 - batch.terminated) * following
        return _td_error(self.critics, batch, target)

    def actor_loss(self, batch: Transition) -> Tensor:
        """-lambda mean Q_1(s, pi(s)) + mean (pi(s) - a)^2, lambda = alpha / mean |Q_1|."""
        action = self.actor(batch.observation)
        q = self._followed.first(batch.observation, action)
        scale = self._section.alpha / q.abs().mean().detach()
        return -scale * q.mean() + (action - batch.action).square().mean()


class Iql:
    """IQL in the official order: value, policy, critics, target."""

    def __init__(
        self,
        config: Config,
        state_size: int,
        action_size: int,
        tuning: Tuning,
        *,
        return_range: float,
    ):
        section = self._section = config.section(iql.Settings)
        self.batches_per_update = 1
        self._discount, self._tuned = config.discount, tuning.tuned
        self._reward_scale = 1000.0 / return_range
        self.actor = GaussianPolicy(
            state_size, section.hidden, action_size, log_std=_LOG_STD_BOUNDS
        ).to(tuning.device)
        self.value = Value(state_size, section.hidden).to(tuning.device)
        self.critics = Critics(state_size + action_size, section.hidden, orthogonal=True).to(
            tuning.device
        )
        self.target_critics = _frozen_copy(self.critics)
        rate = section.learning_rate
        self.actor_learner = Learner(
            self.actor, rate, tuning, schedule="cosine", total_steps=config.training.updates
        )
        self.value_learner = Learner(self.value, rate, tuning)
        self.critic_learner = Learner(self.critics, rate, tuning)
        self._value_loss = tuning.compile(self.value_loss)
        self._actor_loss = tuning.compile(self.actor_loss)
        self._critic_loss = tuning.compile(self.critic_loss)

    def update(self, batches: Transition) -> None:
        """One update on batches [1, B, ...], rewards in raw units."""
        batch = Transition(*(field[0] for field in batches))
        value_loss, q = self._value_loss(batch)
        self.value_learner.update(value_loss)
        self.actor_learner.update(self._actor_loss(batch, q))
        self.critic_learner.update(self._critic_loss(batch))
        _move_targets(
            [self.target_critics], [self.critics], self._section.tau, together=self._tuned
        )

    def advance(self) -> None:
        """Sets the learning rates of the next update."""
        self.actor_learner.advance()

    def value_loss(self, batch: Transition) -> tuple[Tensor, Tensor]:
        """Expectile regression of V(s) on min Q(s, a) of the target critics, and that Q, [B]."""
        expectile = self._section.expectile
        with torch.no_grad():
            q = self.target_critics(batch.observation, batch.action).amin(0)
        difference = q - self.value(batch.observation)
        weight = torch.where(difference > 0, expectile, 1.0 - expectile)
        return (weight * difference.square()).mean(), q

    def actor_loss(self, batch: Transition, q: Tensor) -> Tensor:
        """-mean min(exp(beta advantage), max_weight) log pi(a | s) (IQL, eq. 7)."""
        section = self._section
        with torch.no_grad():
            advantage = q - self.value(batch.observation)
            weight = (section.beta * advantage).exp().clamp(max=section.max_weight)
        mean, log_std = self.actor(batch.observation)
        policy = torch.distributions.Normal(mean, log_std.exp(), validate_args=False)
        return -(weight * policy.log_prob(batch.action).sum(-1)).mean()

    def critic_loss(self, batch: Transition) -> Tensor:
        """Sum over the critics of the mean squared TD error (IQL, eq. 6)."""
        with torch.no_grad():
            following = self.value(batch.next_observation)
            bootstrap = self._discount * (1.0 - batch.terminated) * following
            target = self._reward_scale * batch.reward + bootstrap
        return _td_error(self.critics, batch, target)


def _td_error(critics: Critics, batch: Transition, target: Tensor) -> Tensor:
    return (critics(batch.observation, batch.action) - target).square().mean(1).sum()


def _frozen_copy(network: nn.Module) -> Any:
    return copy.deepcopy(network).requires_grad_(False)


def _without_gradients(network: nn.Module) -> Any:
    """A network that shares the parameters' memory and computes no gradients of them."""
    twin = _frozen_copy(network)
    for mine, shared in zip(twin.parameters(), network.parameters(), strict=True):
        mine.data = shared.data
    return twin


def _move_targets(
    targets: list[nn.Module], networks: list[nn.Module], tau: float, *, together: bool
) -> None:
    """target + tau (network - target): all tensors in one call, or one by one."""
    followers = [parameter for target in targets for parameter in target.parameters()]
    followed = [parameter for network in networks for parameter in network.parameters()]
    if together:
        move(followers, followed, tau)
        return
    with torch.no_grad():
        for follower, leader in zip(followers, followed, strict=True):
            follower.lerp_(leader, tau)
