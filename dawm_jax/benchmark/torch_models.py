"""The world model and the inverse dynamics model of the PyTorch side.

See `diffusion`, `sampler`, `world_model` and `inverse_dynamics` of `dawm_jax.models` for formulas
and sources.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dawm_jax.benchmark.torch_common import (
    Condition,
    Learner,
    Replay,
    Transition,
    Tuning,
    Window,
    tensor,
)
from dawm_jax.benchmark.torch_networks import Mlp, TanhMlp, TemporalResNet, TemporalUNet
from dawm_jax.config.schema import Config
from dawm_jax.models import diffusion, temporal_resnet, unet
from dawm_jax.types import Normalizer

# The denoisers that this side has.
DENOISERS = ("temporal_resnet", "unet")

# --- the world model ----------------------------------------------------------------------


class Draws(NamedTuple):
    """The random numbers of one training step; see `models.world_model.Draws`."""

    step: Tensor  # [B] int64
    noise: Tensor  # [B, H + 1, channels]
    conditioned: Tensor  # [B]


class GeneratedWindow(NamedTuple):
    """Generated windows; see `dawm_jax.types.GeneratedWindow`."""

    states: Tensor  # [B, H + 1, S]
    rewards: Tensor  # [B, H]
    terminated: Tensor  # [B, H]


class WorldModel:
    """The world model with its training and its sampler; see `models.world_model`.

    `network` holds the denoiser and the classifier of terminations; one optimiser trains both.
    """

    def __init__(self, config: Config, normalizer: Normalizer, replay: Replay, tuning: Tuning):
        section = self._section = config.world_model
        self._horizon, self._roll = config.horizon, config.rollout
        self._replay, self._device = replay, tuning.device
        self._state_size = len(normalizer.observation_mean)
        self.channels = self._state_size + 1
        denoiser = make_denoiser(config, self._state_size, len(normalizer.action_low))
        termination = Mlp(2 * self._state_size, section.termination_hidden, 2)
        networks = {"denoiser": denoiser, "termination": termination}
        self.network = nn.ModuleDict(networks).to(tuning.device)
        self.learner = Learner(
            self.network,
            section.learning_rate,
            tuning,
            schedule=section.schedule,
            total_steps=section.steps,
            warmup_steps=section.warmup_steps,
            ema_decay=section.ema_decay,
        )
        schedule = np.array(diffusion.cosine_schedule(section.diffusion_steps))
        self._alpha_bar = tensor(schedule, tuning.device)
        steps = diffusion.visited_steps(schedule, self._roll.sampling_steps, self._roll.spacing)
        following = np.append(schedule[steps[1:]], np.float32(1.0))
        log_snr = np.log(schedule[steps]) - np.log1p(-schedule[steps])
        growth = np.diff(log_snr)
        # DPM-Solver++(2M), Lu et al. 2022, algorithm 2; 0 at the first and the last step.
        extrapolated = np.zeros(len(steps), np.float32)
        if self._roll.order == 2:
            extrapolated[1:-1] = growth[1:] / growth[:-1] / 2.0
        # (k, abar, next abar, weight) of each step, as tensors: numbers would compile one program
        # for each step.
        self._ddim_steps = [
            tuple(tensor(number, tuning.device) for number in numbers)
            for numbers in zip(steps, schedule[steps], following, extrapolated, strict=True)
        ]
        number = lambda value: float(np.asarray(value))
        self._reward = number(normalizer.reward_mean), number(normalizer.reward_std)
        self._return_bounds = number(normalizer.return_low), number(normalizer.return_high)
        constant = lambda array: tensor(np.array(array, np.float32), tuning.device)
        self._change = constant(normalizer.change_mean), constant(normalizer.change_std)
        mean, std = np.array(normalizer.observation_mean), np.array(normalizer.observation_std)
        self._lowest_state = constant((np.array(normalizer.observation_low) - mean) / std)
        self._highest_state = constant((np.array(normalizer.observation_high) - mean) / std)
        self._low = self._bound(normalizer, normalizer.change_low, normalizer.reward_low)
        self._high = self._bound(normalizer, normalizer.change_high, normalizer.reward_high)
        self._loss_of_batch = tuning.compile(self._draw_and_loss)
        self._ddim_step = tuning.compile(self._one_ddim_step)

    def update(self, starts: Tensor | None = None, draws: Draws | None = None) -> None:
        """One training step on windows from `starts`, [B]."""
        self.learner.update(self._loss_of_batch(starts, draws))

    def advance(self) -> None:
        """Sets the learning rate of the next step."""
        self.learner.advance()

    def _draw_and_loss(self, starts: Tensor | None, draws: Draws | None) -> Tensor:
        starts = self._replay.draw(self._section.batch_size) if starts is None else starts
        draws = self.draw(len(starts)) if draws is None else draws
        return self.loss(self._replay.gather_windows(starts, horizon=self._horizon), draws)

    def draw(self, batch_size: int) -> Draws:
        """The random numbers of one step's loss."""
        section, device = self._section, self._device
        return Draws(
            step=torch.randint(section.diffusion_steps, (batch_size,), device=device),
            noise=torch.randn(batch_size, self._horizon + 1, self.channels, device=device),
            conditioned=(
                torch.rand(batch_size, device=device) >= section.condition_dropout
            ).float(),
        )

    def loss(self, window: Window, draws: Draws) -> Tensor:
        """Denoising loss (DDPM, eq. 14, for the chosen prediction) over known tokens.

        The cross-entropies of both outputs of `end_logits` are added.
        """
        x0 = self.to_tokens(window)
        alpha_bar = self._alpha_bar[draws.step][:, None, None]
        signal, spread = alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()
        # After a termination the state stays; what follows a time-out is unknown.
        known = torch.maximum(window.mask, window.terminated)[..., None]
        x = signal * x0 + spread * draws.noise
        later = torch.where(known > 0, x[:, 1:], draws.noise[:, 1:])
        x = torch.cat([x0[:, :1], later], dim=1)
        output = self._predict(
            self.network, x, draws.step, window.action, window.return_to_go, draws.conditioned
        )
        target = {
            "epsilon": lambda: draws.noise,
            "x0": lambda: x0,
            "v": lambda: signal * draws.noise - spread * x0,
        }[self._section.prediction]()
        denoising = ((output - target).square()[:, 1:] * known).mean()
        terminates, absorbed = end_logits(self.network, window.states)
        entropy = nn.functional.binary_cross_entropy_with_logits
        return (
            denoising
            + entropy(terminates, window.terminated, weight=window.mask)
            + entropy(absorbed, 1.0 - window.mask, weight=known[..., 0])
        )

    def to_tokens(self, window: Window) -> Tensor:
        """Windows as clean tokens, [B, H + 1, channels]."""
        reward = (window.rewards - self._reward[0]) / self._reward[1]
        reward = nn.functional.pad(reward, (1, 0))[..., None]
        changes = (window.states.diff(dim=1) - self._change[0]) / self._change[1]
        return torch.cat([torch.cat([window.states[:, :1], changes], dim=1), reward], dim=-1)

    def _reached(self, tokens: Tensor) -> Tensor:
        """States of tokens, not clipped, [B, H + 1, S]."""
        first = tokens[:, :1, : self._state_size]
        changes = tokens[:, 1:, : self._state_size] * self._change[1] + self._change[0]
        return torch.cat([first, first + changes.cumsum(dim=1)], dim=1)

    def _states(self, tokens: Tensor) -> Tensor:
        """States of tokens, [B, H + 1, S], clipped at the data's range."""
        reached = self._reached(tokens)
        later = reached[:, 1:].clamp(self._lowest_state, self._highest_state)
        return torch.cat([reached[:, :1], later], dim=1)

    def _bound(self, normalizer: Normalizer, change: Any, reward: Any) -> Tensor:
        mean, std = np.array(normalizer.change_mean), np.array(normalizer.change_std)
        standardised = (float(reward) - self._reward[0]) / self._reward[1]
        tokens = np.append((np.array(change) - mean) / std, standardised)
        return tensor(tokens.astype(np.float32), self._device)

    def _predict(self, networks: Any, x: Tensor, *inputs: Tensor) -> Tensor:
        before = nn.functional.pad(self._reached(x)[:, :-1], (0, 0, 1, 0))
        inputs = (torch.cat([x, before], dim=-1), *inputs)
        if self._section.dtype == "float32":
            return networks["denoiser"](*inputs)
        with torch.autocast(torch.device(self._device).type, torch.bfloat16):
            return networks["denoiser"](*inputs)

    def target_return(self, return_to_go: Tensor) -> Tensor:
        """The scaled return-to-go that a generated window aims at; see `synthetic.TargetReturn`."""
        factor, (low, high) = self._roll.target_factor, self._return_bounds
        if self._roll.target_rule == "max_fraction":
            return torch.full_like(return_to_go, low + factor * (high - low))
        wanted = return_to_go + (factor - 1.0) * return_to_go.abs()
        return torch.minimum(wanted, return_to_go.clamp(min=high))

    @torch.inference_mode()
    def sample(
        self, condition: Condition, initial: Tensor | None = None, noise: Tensor | None = None
    ) -> GeneratedWindow:
        """Generates a window from each condition, with the averaged parameters.

        Args:
          condition: starts and returns to aim at, leading axis B.
          initial: [B, H + 1, channels] standard normal, the first sample.
          noise: [DDIM steps, B, H + 1, channels] standard normal, used with eta > 0.
        """
        tokens = self.sample_tokens(condition, initial, noise)
        states = self._states(tokens)
        return GeneratedWindow(
            states=states,
            rewards=tokens[:, 1:, -1] * self._reward[1] + self._reward[0],
            terminated=ends(self.learner.average, states),
        )

    @torch.inference_mode()
    def sample_tokens(
        self, condition: Condition, initial: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """As `sample`, but tokens [B, H + 1, channels]: DDIM from pure noise."""
        batch, roll = len(condition.state), self._roll
        shape = (batch, self._horizon + 1, self.channels)
        first = nn.functional.pad(condition.state, (0, 1))
        inputs = self._guided(condition)
        x = torch.randn(shape, device=self._device) if initial is None else initial
        x = roll.temperature * x
        previous = torch.zeros_like(x)
        for index, schedule in enumerate(self._ddim_steps):
            extra = None
            if roll.eta > 0:
                drawn = torch.randn(shape, device=self._device) if noise is None else noise[index]
                extra = roll.temperature * drawn
            x, previous = self._ddim_step(x, previous, first, inputs, schedule, extra)
        return clamp(x, first)

    def _guided(self, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """Action, return, and whether the return is given.

        Guidance that needs both predictions gets twice the batch, conditioned rows first.
        """
        action, wanted = condition.action, condition.return_to_go
        given = torch.ones_like(wanted)
        if self._roll.guidance in (0.0, 1.0):
            return action, wanted, given * self._roll.guidance
        return (
            torch.cat([action, action]),
            torch.cat([wanted, wanted]),
            torch.cat([given, torch.zeros_like(given)]),
        )

    def _one_ddim_step(
        self,
        x: Tensor,
        previous: Tensor,
        first: Tensor,
        inputs: tuple[Tensor, Tensor, Tensor],
        schedule: tuple[Tensor, ...],
        noise: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """A guided prediction (Ho & Salimans 2022), then DDIM's step (Song et al. 2021, eq. 12).

        Returns:
          The next sample, and the predicted clean one.
        """
        step, alpha_bar, alpha_bar_next, extrapolated = schedule
        weight, eta = float(self._roll.guidance), self._roll.eta
        x = clamp(x, first)
        both = len(inputs[0]) > len(x)
        batch = torch.cat([x, x]) if both else x
        output = self._predict(self.learner.average, batch, step.expand(len(batch)), *inputs)
        if both:
            given, dropped = output.chunk(2)
            output = dropped + weight * (given - dropped)
        signal, spread = alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()
        x0 = {
            "epsilon": lambda: (x - spread * output) / signal,
            "x0": lambda: output,
            "v": lambda: signal * x - spread * output,
        }[self._section.prediction]()
        x0 = x0.clamp(self._low, self._high)
        target = x0 + extrapolated * (x0 - previous)
        epsilon = (x - signal * target) / spread
        variance = (1.0 - alpha_bar_next) / (1.0 - alpha_bar) * (1.0 - alpha_bar / alpha_bar_next)
        direction = (1.0 - alpha_bar_next - eta**2 * variance).clamp(min=0.0).sqrt()
        x = alpha_bar_next.sqrt() * target + direction * epsilon
        return (x if noise is None else x + eta * variance.sqrt() * noise), x0


def make_denoiser(config: Config, state_size: int, action_size: int) -> nn.Module:
    """The denoiser that `config.world_model.denoiser` names, for tokens of changes."""
    channels = state_size + 1
    inputs = channels + state_size
    if config.world_model.denoiser == "unet":
        sizes = dataclasses.asdict(config.section(unet.Settings))
        return TemporalUNet(inputs, channels, action_size, **sizes)
    sizes = dataclasses.asdict(config.section(temporal_resnet.Settings))
    return TemporalResNet(config.horizon + 1, inputs, channels, action_size, **sizes)


def end_logits(networks: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    """Logits that steps terminate, and that they are absorbed, [B, H + 1, S] -> [B, H] each."""
    pairs = torch.cat([states[:, :-1], states[:, 1:]], dim=-1)
    terminates, absorbed = networks["termination"](pairs).unbind(-1)
    return terminates, absorbed


def ends(networks: Any, states: Tensor) -> Tensor:
    """Which steps of windows terminate or precede an absorbed one, 0 or 1, [B, H]."""
    terminates, absorbed = end_logits(networks, states)
    next_absorbed = nn.functional.pad(absorbed[:, 1:] > 0.0, (0, 1))
    return ((terminates > 0.0) | next_absorbed).float()


def clamp(x: Tensor, first: Tensor) -> Tensor:
    """`x` with the known first token."""
    return torch.cat([first[:, None], x[:, 1:]], dim=1)


# --- the inverse dynamics model -----------------------------------------------------------


class InverseDynamics:
    """Regression of the action on both states; see `models.inverse_dynamics`."""

    def __init__(self, config: Config, normalizer: Normalizer, replay: Replay, tuning: Tuning):
        section = config.inverse_dynamics
        constant = lambda array: tensor(np.array(array, np.float32), tuning.device)
        self._change = constant(normalizer.change_mean), constant(normalizer.change_std)
        self._replay, self._batch_size = replay, section.batch_size
        state_size = replay.transitions.observation.shape[1]
        action_size = replay.transitions.action.shape[1]
        self.network = TanhMlp(2 * state_size, section.hidden, action_size).to(tuning.device)
        self.learner = Learner(
            self.network,
            section.learning_rate,
            tuning,
            schedule=section.schedule,
            total_steps=section.steps,
            ema_decay=section.ema_decay,
        )
        self._loss_of_batch = tuning.compile(self._draw_and_loss)

    def update(self, rows: Tensor | None = None) -> None:
        """One training step on rows [B]."""
        self.learner.update(self._loss_of_batch(rows))

    def advance(self) -> None:
        """Sets the learning rate of the next step."""
        self.learner.advance()

    def _draw_and_loss(self, rows: Tensor | None) -> Tensor:
        rows = self._replay.draw(self._batch_size) if rows is None else rows
        return self.loss(self._replay.gather_transitions(rows))

    def loss(self, batch: Transition) -> Tensor:
        """Mean squared error of the action."""
        change = self._change_between(batch.observation, batch.next_observation)
        action = self.network(batch.observation, change)
        return (action - batch.action).square().mean()

    @torch.inference_mode()
    def infer(self, state: Tensor, next_state: Tensor) -> Tensor:
        """Actions by the averaged parameters, [..., S] each -> [..., A]."""
        return self.learner.average(state, self._change_between(state, next_state))

    def _change_between(self, state: Tensor, next_state: Tensor) -> Tensor:
        return (next_state - state - self._change[0]) / self._change[1]
