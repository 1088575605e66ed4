"""A Gaussian one-step dynamics model: a baseline of the diffusion model.

One network predicts mean and log-variance of the change of the standardised state and of the
standardised reward, and the logit of a termination. It is trained by maximum likelihood (PETS,
Chua et al. 2018, 1805.12114, section 4) on real transitions. Windows come from feeding the model
its own states, with the actions of a policy.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dawm_jax.data import replay as replays
from dawm_jax.data.replay import Replay
from dawm_jax.models import optim, regression, tokens
from dawm_jax.models.base import FitSettings, MeanFn, ShardFn
from dawm_jax.models.networks import Mlp
from dawm_jax.models.optim import TrainState
from dawm_jax.models.tokens import Tokens
from dawm_jax.runtime.settings import redefault, setting
from dawm_jax.types import (
    Condition,
    GeneratedWindow,
    Metrics,
    Normalizer,
    Params,
    PolicyFn,
    Transition,
)

# Soft bounds of the log-variance, in standardised units (PETS bounds it in the same way).
_LOG_VARIANCE_BOUNDS = (-10.0, 0.5)


@dataclasses.dataclass(frozen=True)
class Settings(FitSettings):
    """The one-step dynamics model and its training."""

    steps: int = redefault(
        FitSettings,
        "steps",
        200_000,
        quick=16_000,
        smoke=20,
        help="gradient steps, as many as the world model's",
        source="DWM: 1,000,000",
    )
    batch_size: int = redefault(
        FitSettings, "batch_size", 256, smoke=16, help="transitions of a minibatch"
    )
    learning_rate: float = redefault(
        FitSettings, "learning_rate", 1e-3, source="DWM: 1e-4 for more steps"
    )
    checkpoint_steps: int = redefault(
        FitSettings, "checkpoint_steps", 20_000, quick=2_000, smoke=10
    )
    log_steps: int = redefault(FitSettings, "log_steps", 2_000, quick=500, smoke=5)
    hidden: tuple[int, ...] = setting(
        (256, 256, 256, 256), "units of the hidden layers", smoke=(16,), at_least=1, source="DWM"
    )


class Prediction(NamedTuple):
    """What follows a state and an action."""

    mean: jax.Array  # [B, S + 1], change of the standardised state, standardised reward
    log_variance: jax.Array  # [B, S + 1]
    logit: jax.Array  # [B], of a termination


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianDynamics:
    """p(s', r, termination | s, a); a `Trainable`.

    Attributes:
      settings: section of the model and its training.
      network: (s, a) -> [2 (S + 1) + 1], means, log-variances and one logit.
      normalizer: constants fitted on the training data.
    """

    settings: Settings
    network: Mlp
    normalizer: Normalizer

    def init(self, key: jax.Array) -> TrainState:
        """A fresh training state; `key` is consumed."""
        inputs = self.normalizer.observation_mean.shape[0] + self.normalizer.action_low.shape[0]
        params = self.network.init(key, jnp.zeros((1, inputs), jnp.float32))
        return optim.init_state(params, regression.optimizer(self.settings))

    def step(
        self, state: TrainState, key: jax.Array, replay: Replay, *, shard: ShardFn, mean: MeanFn
    ) -> tuple[TrainState, Metrics]:
        """See `Trainable`."""
        return regression.step(
            state,
            key,
            replay,
            loss=self.loss,
            settings=self.settings,
            shard=shard,
            mean=mean,
        )

    def predict(self, params: Params, state: jax.Array, action: jax.Array) -> Prediction:
        """The distribution of the next step, from standardised [B, S] and [B, A]."""
        output = self.network.apply(params, jnp.concatenate([state, action], axis=-1))
        size = state.shape[-1] + 1
        mean, raw, logit = jnp.split(output, [size, 2 * size], axis=-1)
        low, high = _LOG_VARIANCE_BOUNDS
        bounded = high - jax.nn.softplus(high - raw)
        return Prediction(mean, low + jax.nn.softplus(bounded - low), logit[..., 0])

    def loss(self, params: Params, batch: Transition) -> tuple[jax.Array, Metrics]:
        """Negative log-likelihood of state and reward, plus the termination's; and metrics.

        The Gaussian part is the mean over dimensions, without its constant.
        """
        predicted = self.predict(params, batch.observation, batch.action)
        error = jnp.square(self._target(batch) - predicted.mean)
        gaussian = 0.5 * (error * jnp.exp(-predicted.log_variance) + predicted.log_variance).mean()
        ended = optax.sigmoid_binary_cross_entropy(predicted.logit, batch.terminated).mean()
        value = gaussian + ended
        return value, {"loss": value, "mse": error.mean(), "termination_loss": ended}

    def errors(self, params: Params, replay: Replay, rows: jax.Array) -> Metrics:
        """Squared error of the means, in standardised units, and the loss.

        Returns:
          `mse` [S + 1], the reward's last; `baseline_mse` [S + 1], of predicting no change and
          the mean reward; `loss` [].
        """
        batch = replays.gather_transitions(replay, rows)
        target = self._target(batch)
        predicted = self.predict(params, batch.observation, batch.action)
        return {
            "mse": jnp.square(target - predicted.mean).mean(0),
            "baseline_mse": jnp.square(target).mean(0),
            "loss": self.loss(params, batch)[0],
        }

    def roll_out(
        self,
        params: Params,
        key: jax.Array,
        condition: Condition,
        *,
        act: PolicyFn,
        horizon: int,
    ) -> GeneratedWindow:
        """Windows of sampled steps: the first action is given, a policy takes the others.

        Args:
          params: parameters of the model.
          key: random number generator state, the key is consumed.
          condition: starts, leading axis B; the return-to-go is not used.
          act: the policy.
          horizon: H.

        Returns:
          Windows [B, ...] whose states and rewards are within the range of the data.
        """
        # DAWM's tokens are a state and a reward, as the predicted means.
        low, high = Tokens(tokens.DAWM, self.normalizer).bounds()

        def step(
            state_and_action: tuple[jax.Array, jax.Array], index: jax.Array
        ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
            state, action = state_and_action
            predicted = self.predict(params, state, action)
            noise = jax.random.normal(jax.random.fold_in(key, index), predicted.mean.shape)
            change = predicted.mean + jnp.exp(0.5 * predicted.log_variance) * noise
            arrived = jnp.concatenate([state + change[:, :-1], change[:, -1:]], axis=-1)
            arrived = jnp.clip(arrived, low[None], high[None])
            following, reward = arrived[:, :-1], arrived[:, -1]
            ended = (predicted.logit > 0.0).astype(jnp.float32)
            return (following, act(following)), (following, action, reward, ended)

        start = (condition.state, condition.action)
        _, outputs = jax.lax.scan(step, start, jnp.arange(horizon))
        states, actions, rewards, ended = (jnp.moveaxis(leaf, 0, 1) for leaf in outputs)
        return GeneratedWindow(
            states=jnp.concatenate([condition.state[:, None], states], axis=1),
            rewards=rewards * self.normalizer.reward_std + self.normalizer.reward_mean,
            terminated=ended,
            actions=actions,
        )

    def _target(self, batch: Transition) -> jax.Array:
        """Change of the state and reward, standardised, [B, S + 1]."""
        reward = (batch.reward - self.normalizer.reward_mean) / self.normalizer.reward_std
        change = batch.next_observation - batch.observation
        return jnp.concatenate([change, reward[:, None]], axis=-1)


def make(settings: Settings, normalizer: Normalizer) -> GaussianDynamics:
    """The one-step model of the states and actions that `normalizer` describes."""
    size = normalizer.observation_mean.shape[0]
    return GaussianDynamics(settings, Mlp(settings.hidden, 2 * (size + 1) + 1), normalizer)
