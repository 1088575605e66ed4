"""What the stages of the PyTorch side share: how to run, data on the device, and Adam.

Whatever is random can be given by the caller; it is drawn on the device otherwise. Nothing
here waits for the device.
"""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dawm_jax.data import windows


class Tuning(NamedTuple):
    """What a run does for speed beyond plain PyTorch.

    Attributes:
      fused_optimizer: one kernel for Adam's whole step, instead of one for each operation.
      compiled: `torch.compile` for the losses and the sampler; on CUDA each step is then also
        captured as a graph.
      device: "cpu" or "cuda".
    """

    fused_optimizer: bool = False
    compiled: bool = False
    device: str = "cpu"

    @property
    def tuned(self) -> bool:
        """Whether to do by hand, too, what plain code leaves undone."""
        return self.fused_optimizer or self.compiled

    @property
    def captured(self) -> bool:
        """Whether steps are replayed as CUDA graphs."""
        return self.compiled and torch.device(self.device).type == "cuda"

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled if wanted.

        As one graph: otherwise what cannot be compiled would silently run as plain PyTorch.
        """
        return torch.compile(function, dynamic=False, fullgraph=True) if self.compiled else function

    def capture(self, step: Callable[[], Any]) -> Callable[[], Any]:
        """A step without arguments as one CUDA graph, if wanted; it is run a few times first."""
        if not self.captured:
            return step
        # Warming up on a side stream is PyTorch's protocol: it compiles and allocates.
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


class Window(NamedTuple):
    """A training example of the world model; see `dawm_jax.types.Window`."""

    states: Tensor  # [H + 1, S]
    rewards: Tensor  # [H]
    terminated: Tensor  # [H]
    mask: Tensor  # [H]
    action: Tensor  # [A]
    return_to_go: Tensor  # []


class Condition(NamedTuple):
    """What a generated window starts from and aims at."""

    state: Tensor  # [S]
    action: Tensor  # [A]
    return_to_go: Tensor  # []


def tensor(array: Any, device: str) -> Tensor:
    """A copy of an array on the device."""
    return torch.from_numpy(np.array(array)).to(device)


class Replay(NamedTuple):
    """A dataset on the device; see `dawm_jax.windows.Replay`."""

    transitions: Transition  # [N, ...]
    episode_end: Tensor  # [N] int64
    return_to_go: Tensor  # [N]
    num_train: int

    @classmethod
    def of(cls, replay: windows.Replay, device: str) -> "Replay":
        """A copy of JAX's."""
        return cls(
            transitions=Transition(*(tensor(field, device) for field in replay.transitions)),
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

    `update` is what a CUDA graph can hold, `advance` what the host does after each.

    Args:
      network: what to train.
      learning_rate: the peak.
      tuning: of the run.
      schedule: "constant", or "cosine" to 0 at `total_steps`.
      total_steps: of the whole training.
      warmup_steps: of linear growth from 0.
      ema_decay: of the moving average; without one `average` is the network itself.
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
        # A graph reads the rate from memory, which the host may write between replays.
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
