"""What the stages of the PyTorch side share: optimisations, data on the device, and Adam.

Random numbers are arguments, which tests give; without them they are drawn on the device. No
function here waits for the device.
"""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dawm_jax import types
from dawm_jax.data import replay as replaying

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class Tuning(NamedTuple):
    """Optimisations beyond PyTorch as it is usually written.

    Attributes:
      fused_optimizer: one kernel for Adam's step, instead of one kernel for each operation.
      compiled: `torch.compile` of the losses and the sampler; on CUDA each step is also
        captured as a graph.
      device: "cpu" or "cuda".
    """

    fused_optimizer: bool = False
    compiled: bool = False
    device: str = "cpu"

    @property
    def tuned(self) -> bool:
        """Whether the hand-written optimisations are on: no unused gradients, joined updates."""
        return self.fused_optimizer or self.compiled

    @property
    def captured(self) -> bool:
        """Whether steps are replayed as CUDA graphs."""
        return self.compiled and torch.device(self.device).type == "cuda"

    def compile(self, function: FunctionT) -> FunctionT:
        """The function, compiled if this tuning says so.

        It is compiled as one graph, so that a part that cannot be compiled is an error and does
        not run uncompiled.
        """
        return torch.compile(function, dynamic=False, fullgraph=True) if self.compiled else function

    def capture(self, step: Callable[[], Any]) -> Callable[[], Any]:
        """A step without arguments, as one CUDA graph if this tuning says so.

        The capture runs the step three times before.
        """
        if not self.captured:
            return step
        # PyTorch's documentation asks for warm-up runs on a side stream before a capture.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay


# --- data ---------------------------------------------------------------------------------


class Transition(NamedTuple):
    """One environment step, or a batch; see `dawm_jax.types.Transition`."""

    observation: Tensor  # [S]
    action: Tensor  # [A]
    reward: Tensor  # []
    terminated: Tensor  # [], 0 or 1
    next_observation: Tensor  # [S]

    @classmethod
    def of(cls, transitions: types.Transition, device: str) -> "Transition":
        """A copy of JAX's or NumPy's transitions on the device."""
        return cls(*(tensor(getattr(transitions, name), device) for name in cls._fields))


class Window(NamedTuple):
    """A training example of the world model; see `dawm_jax.types.Window`."""

    states: Tensor  # [H + 1, S]
    rewards: Tensor  # [H]
    terminated: Tensor  # [H]
    mask: Tensor  # [H]
    action: Tensor  # [A]
    return_to_go: Tensor  # []


class Condition(NamedTuple):
    """A real start and the return to aim at; see `dawm_jax.types.Condition`."""

    state: Tensor  # [S]
    action: Tensor  # [A]
    return_to_go: Tensor  # []


def tensor(array: Any, device: str) -> Tensor:
    """A copy of an array on the device."""
    return torch.from_numpy(np.array(array)).to(device)


class Replay(NamedTuple):
    """A dataset on the device; see `dawm_jax.data.replay.Replay`."""

    transitions: Transition  # [N, ...]
    episode_end: Tensor  # [N] int64
    return_to_go: Tensor  # [N]
    num_train: int

    @classmethod
    def of(cls, replay: replaying.Replay, device: str) -> "Replay":
        """A copy of the JAX side's replay."""
        return cls(
            transitions=Transition.of(replay.transitions, device),
            episode_end=tensor(replay.episode_end, device).long(),
            return_to_go=tensor(replay.return_to_go, device),
            num_train=replay.num_train,
        )

    def draw(self, *shape: int, held_out: bool = False) -> Tensor:
        """Training steps drawn uniformly with replacement; `held_out` draws from all steps."""
        bound = len(self.episode_end) if held_out else self.num_train
        return torch.randint(bound, shape, device=self.episode_end.device)

    def gather_windows(self, starts: Tensor, *, horizon: int) -> Window:
        """Windows of `horizon` steps that begin at steps [B] and never leave their episode."""
        steps = starts[:, None] + torch.arange(horizon, device=starts.device)  # [B, H]
        ends = self.episode_end[starts][:, None]
        exists = (steps <= ends).float()
        steps = torch.minimum(steps, ends)
        data = self.transitions
        first = data.observation[starts][:, None]
        return Window(
            states=torch.cat([first, data.next_observation[steps]], dim=1),
            rewards=data.reward[steps] * exists,
            terminated=data.terminated[steps],
            mask=exists,
            action=data.action[starts],
            return_to_go=self.return_to_go[starts],
        )

    def gather_transitions(self, rows: Tensor) -> Transition:
        """The transitions at given rows."""
        return Transition(*(field[rows] for field in self.transitions))

    def gather_conditions(self, starts: Tensor) -> Condition:
        """State, action and return-to-go of given steps."""
        data = self.transitions
        return Condition(data.observation[starts], data.action[starts], self.return_to_go[starts])


# --- optimisation -------------------------------------------------------------------------


class Learner:
    """A network in training: Adam under a schedule, and the parameters' moving average.

    `update` can be part of a CUDA graph. The host calls `advance` after each update.

    Args:
      network: what to train.
      learning_rate: the peak.
      tuning: optimisations of the run.
      schedule: "constant", or "cosine" to 0 at `total_steps`.
      total_steps: gradient steps of the whole training.
      warmup_steps: gradient steps of linear growth from 0.
      ema_decay: decay of the moving average; with None `average` is the network itself.
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float,
        tuning: Tuning,
        *,
        schedule: str = "constant",
        total_steps: int = 1,
        warmup_steps: int = 0,
        ema_decay: float | None = None,
    ):
        self.average = network
        if ema_decay is not None:
            self.average = copy.deepcopy(network).requires_grad_(False)
        self._parameters = list(network.parameters())
        self._averages = list(self.average.parameters())
        self._ema_decay = ema_decay
        self._peak, self._schedule = learning_rate, schedule
        self._warmup_steps, self._total_steps = warmup_steps, total_steps
        self._count = 0
        # A CUDA graph reads the rate from memory, which the host writes between replays.
        rate = torch.tensor(self._rate(), device=tuning.device) if tuning.captured else self._rate()
        self.optimizer = torch.optim.Adam(
            self._parameters,
            lr=rate,
            fused=tuning.fused_optimizer or None,  # None: PyTorch's default
            capturable=tuning.captured,
        )

    def update(self, loss: Tensor) -> None:
        """One step along the gradient of `loss`."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self._ema_decay is not None:
            move(self._averages, self._parameters, 1.0 - self._ema_decay)

    def advance(self) -> None:
        """Sets the learning rate of the next step."""
        self._count += 1
        if self._schedule == "constant" and not self._warmup_steps:
            return
        group = self.optimizer.param_groups[0]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(self._rate())
        else:
            group["lr"] = self._rate()

    def _rate(self) -> float:
        if self._count < self._warmup_steps:
            return self._peak * self._count / self._warmup_steps
        if self._schedule == "constant":
            return self._peak
        steps = max(self._total_steps - self._warmup_steps, 1)
        done = min((self._count - self._warmup_steps) / steps, 1.0)
        return self._peak * 0.5 * (1.0 + math.cos(math.pi * done))


@torch.no_grad()
def move(targets: Iterable[Tensor], sources: Iterable[Tensor], share: float) -> None:
    """target + share (source - target), of all tensors in one call."""
    torch._foreach_lerp_(list(targets), list(sources), share)
