"""The stages of a run in PyTorch, as functions without arguments that can be timed.

Method, sizes and order of operations are those of `training.fused` and of the models' steps.
Nothing inside a stage waits for the device. Each stage waits once, at its end.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dawm_jax.benchmark.jax_side import STAGES
from dawm_jax.benchmark.torch_agents import Iql, Td3Bc
from dawm_jax.benchmark.torch_common import Replay, Transition, Tuning
from dawm_jax.benchmark.torch_models import DENOISERS, GeneratedWindow, InverseDynamics, WorldModel
from dawm_jax.benchmark.torch_networks import copy_parameters
from dawm_jax.config.schema import Config
from dawm_jax.data import replay as replaying
from dawm_jax.types import Normalizer, UserError


class Buffer:
    """A ring of the latest synthetic transitions; see `dawm_jax.data.ring_buffer`."""

    def __init__(self, capacity: int, state_size: int, action_size: int, device: str):
        self.capacity = capacity
        # Invalid rows are written to an additional row at the end. To leave them out, the host
        # would have to know their number.
        zeros = lambda *size: torch.zeros(capacity + 1, *size, device=device)
        self.rows = Transition(
            zeros(state_size), zeros(action_size), zeros(), zeros(), zeros(state_size)
        )
        self.written = torch.zeros((), dtype=torch.int64, device=device)

    @torch.inference_mode()
    def add(self, transitions: Transition, valid: Tensor) -> None:
        """Writes the valid rows over the oldest ones; at most `capacity` rows per call."""
        position = self.written + valid.cumsum(0) - 1
        slot = torch.where(valid, position % self.capacity, self.capacity)
        for ring, new in zip(self.rows, transitions, strict=True):
            ring.index_copy_(0, slot, new)
        self.written += valid.sum()

    def draw(self, *shape: int, numbers: Tensor | None = None) -> Transition:
        """Rows drawn uniformly with replacement from those that were written.

        Args:
          *shape: shape of the draw.
          numbers: integers from 0, of that shape; their remainders are the rows.
        """
        if numbers is None:
            # The number of rows is known on the device alone. Remainders of numbers below 2^62
            # are uniform but for a share of about capacity / 2^62.
            numbers = torch.randint(2**62, shape, device=self.written.device)
        rows = numbers % self.written.clamp(1, self.capacity)
        return Transition(*(ring[rows] for ring in self.rows))


@torch.inference_mode()
def complete(
    window: GeneratedWindow, first_action: Tensor, infer: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Transition, Tensor]:
    """Generated windows as transitions [B * H], and valid [B * H]; see `methods.synthetic`."""
    states, ended = window.states, window.terminated
    later = infer(states[:, 1:-1], states[:, 2:])
    action = torch.cat([first_action[:, None], later], dim=1)
    fields = Transition(states[:, :-1], action, window.rewards, ended, states[:, 1:])
    valid = ended.cumsum(1) - ended == 0
    return Transition(*(field.flatten(0, 1) for field in fields)), valid.flatten()


class Run:
    """The state of a run: data, models, an agent and its buffer.

    Args:
      config: settings of the run, method "dawm".
      replay: the dataset.
      normalizer: constants fitted on its training part.
      agent: "td3_bc" or "iql".
      tuning: optimisations.
      num_windows: windows of a round; None takes `config.rollout.windows_per_round`.
      params: flax parameters to start from, by network: any of world_model, inverse_dynamics,
        actor, critics, value. Networks that are not named are initialised by PyTorch. Names of
        networks that this agent does not have are ignored.

    Raises:
      UserError: the settings ask for what this side cannot do.
    """

    def __init__(
        self,
        config: Config,
        replay: replaying.Replay,
        normalizer: Normalizer,
        *,
        agent: str,
        tuning: Tuning,
        num_windows: int | None = None,
        params: dict[str, Any] | None = None,
    ):
        check(config)
        _check_agent(agent)
        self.config, self.tuning = config, tuning
        self.num_windows = num_windows or config.rollout.windows_per_round
        self.replay = Replay.of(replay, tuning.device)
        self.world_model = WorldModel(config, normalizer, self.replay, tuning)
        self.inverse_dynamics = InverseDynamics(config, normalizer, self.replay, tuning)
        sizes = {"state_size": replay.state_size, "action_size": replay.action_size}
        self.agent: Td3Bc | Iql
        if agent == "td3_bc":
            self.agent = Td3Bc(config, **sizes, tuning=tuning)
        else:
            spread = float(np.asarray(normalizer.return_range))
            self.agent = Iql(config, **sizes, tuning=tuning, return_range=spread)
        self.buffer = Buffer(config.rollout.buffer_capacity, **sizes, device=tuning.device)
        for name, tree in (params or {}).items():
            for network in self._networks(name):
                copy_parameters(network, tree)

    def _networks(self, name: str) -> list[torch.nn.Module]:
        """The named network, with its average or its target."""
        if name in ("world_model", "inverse_dynamics"):
            model = getattr(self, name)
            return [model.network, model.learner.average]
        if name not in ("actor", "critics", "value"):
            raise UserError(f"benchmark: no network is called {name!r}")
        names = (name, f"target_{name}")
        return [getattr(self.agent, name) for name in names if hasattr(self.agent, name)]

    def sample(
        self,
        starts: Tensor | None = None,
        initial: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> GeneratedWindow:
        """Windows from real steps [B] that aim at the target return of the settings.

        See `WorldModel.sample` for `initial` and `noise`.
        """
        starts = self.replay.draw(self.num_windows) if starts is None else starts
        condition = self.replay.gather_conditions(starts)
        wanted = self.world_model.target_return(condition.return_to_go)
        return self.world_model.sample(condition._replace(return_to_go=wanted), initial, noise)

    def generate(
        self,
        starts: Tensor | None = None,
        initial: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> None:
        """One round's windows, with their actions, into the buffer; see `sample`."""
        starts = self.replay.draw(self.num_windows) if starts is None else starts
        first_action = self.replay.transitions.action[starts]
        window = self.sample(starts, initial, noise)
        self.buffer.add(*complete(window, first_action, self.inverse_dynamics.infer))

    def update_on_real(self) -> None:
        """One update of the agent on rows of the whole dataset."""
        shape = (self.agent.batches_per_update, self.config.training.batch_size)
        self.agent.update(self.replay.gather_transitions(self.replay.draw(*shape, held_out=True)))

    def update_on_synthetic(self) -> None:
        """One update of the agent on rows of the buffer."""
        shape = (self.agent.batches_per_update, self.config.training.batch_size)
        self.agent.update(self.buffer.draw(*shape))


def check(config: Config) -> None:
    """Refuses settings that this side does not implement.

    Raises:
      UserError: another method than DAWM, a denoiser that only JAX has, tokens of absolute
        states, columns that are inferred, an agent that is not TD3+BC or IQL, generated actions
        that are dropped, or returns over several steps.
    """
    expected = (
        ("method", config.method, "dawm"),
        ("world_model.denoiser", config.world_model.denoiser, *DENOISERS),
        ("world_model.states", config.world_model.states, "changes"),
        ("world_model.state_columns", config.world_model.state_columns, 0),
        ("rollout.real_actions_only", config.rollout.real_actions_only, False),
        ("training.return_steps", config.training.return_steps, 1),
        ("training.real_return_steps", config.training.real_return_steps, 0, 1),
    )
    for name, value, *wanted in expected:
        if value not in wanted:
            known = " or ".join(map(str, wanted))
            raise UserError(
                f"config.{name}: expected {known} with the PyTorch side, got {value}; set it, "
                "or time JAX alone with --torch="
            )
    _check_agent(config.agent)


def _check_agent(name: str) -> None:
    if name not in ("td3_bc", "iql"):
        raise UserError(
            f"config.agent: expected td3_bc or iql with the PyTorch side, got {name}; set it, or "
            "time JAX alone with --torch="
        )


# --- the stages ---------------------------------------------------------------------------


def make(
    stage: str,
    config: Config,
    replay: replaying.Replay,
    normalizer: Normalizer,
    *,
    fused_optimizer: bool,
    compiled: bool,
    device: str,
    units: int,
    params: dict[str, Any] | None = None,
    num_windows: int | None = None,
    tf32: bool = False,
) -> Callable[[], None]:
    """The work of a stage. Each call continues from the state that the previous one left.

    The first call compiles.

    Args:
      stage: one of STAGES. "fused" starts with an empty buffer and generates before every
        `config.rollout.updates_per_round` updates of `config.agent`. "pipeline" trains both
        models for their configured steps, prefills the buffer, and makes
        `config.training.updates` updates as "fused" does.
      config: settings of a run.
      replay: the dataset.
      normalizer: constants fitted on its training part.
      fused_optimizer: see `Tuning`.
      compiled: see `Tuning`; neither of both is plain PyTorch.
      device: "cpu" or "cuda".
      units: steps (denoiser_training, inverse_dynamics), batches of windows (sampling), or
        updates of the critics (td3_bc, iql, fused); "pipeline" ignores it.
      params: see `Run`.
      num_windows: see `Run`.
      tf32: whether a GPU may multiply float32 matrices in TF32. Sets it for the process.

    Raises:
      UserError: an unknown stage, units that are not whole cycles or rounds, or settings that
        `check` refuses.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32  # PyTorch's default is on
    run = Run(
        config,
        replay,
        normalizer,
        agent=stage if stage in ("td3_bc", "iql") else config.agent,
        tuning=Tuning(fused_optimizer, compiled, device),
        num_windows=num_windows,
        params=params,
    )
    work = stage_of(run, stage, units)

    def synchronised() -> None:
        work()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()

    return synchronised


def stage_of(run: Run, stage: str, units: int) -> Callable[[], None]:
    """The work of a stage on a given run, without the wait at its end; see `make`."""
    config, capture = run.config, run.tuning.capture

    def trained(model: WorldModel | InverseDynamics, steps: int) -> Callable[[], None]:
        return _repeated(_then(capture(model.update), model.advance), steps)

    def rounds(updates: int) -> Callable[[], None]:
        cycles = _whole(config.rollout.updates_per_round, run.agent.batches_per_update)
        update = _then(capture(run.update_on_synthetic), run.agent.advance)
        one_round = _then(capture(run.generate), _repeated(update, cycles))
        return _repeated(one_round, _whole(updates, config.rollout.updates_per_round))

    if stage == "denoiser_training":
        return trained(run.world_model, units)
    if stage == "inverse_dynamics":
        return trained(run.inverse_dynamics, units)
    if stage == "sampling":
        return _repeated(capture(run.sample), units)
    if stage in ("td3_bc", "iql"):
        update = _then(capture(run.update_on_real), run.agent.advance)
        return _repeated(update, _whole(units, run.agent.batches_per_update))
    if stage == "fused":
        return rounds(units)
    if stage == "pipeline":
        prefill = -(-config.rollout.prefill_transitions // (run.num_windows * config.horizon))
        return _then(
            trained(run.world_model, config.world_model.steps),
            trained(run.inverse_dynamics, config.inverse_dynamics.steps),
            _repeated(capture(run.generate), prefill),
            rounds(config.training.updates),
        )
    raise UserError(f"benchmark: expected one of {', '.join(STAGES)}, got {stage!r}")


def _whole(units: int, size: int) -> int:
    if units < 1 or units % size:
        raise UserError(f"benchmark: expected a multiple of {size} updates, got {units}")
    return units // size


def _then(*steps: Callable[[], Any]) -> Callable[[], None]:
    def work() -> None:
        for step in steps:
            step()

    return work


def _repeated(step: Callable[[], Any], count: int) -> Callable[[], None]:
    def work() -> None:
        for _ in range(count):
            step()

    return work


# --- the device ---------------------------------------------------------------------------


def device() -> str:
    """The device that PyTorch computes on: "cuda" if there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def matmul(size: int, dtype: str) -> Callable[[], None]:
    """A product of two square matrices that returns when the device is done."""
    x = torch.ones(size, size, device=device(), dtype=getattr(torch, dtype))

    def product() -> None:
        x @ x
        if x.is_cuda:
            torch.cuda.synchronize()

    return product


def peak_bytes() -> float:
    """Peak of the GPU memory that tensors held, in bytes; 0 without a GPU."""
    return float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0.0
