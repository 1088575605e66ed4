"""The contracts of models: what training needs of each, and what diffusion needs of a denoiser."""

import dataclasses
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax

from dawm_jax.data.replay import Replay
from dawm_jax.models.optim import TrainState
from dawm_jax.runtime.registry import Registry
from dawm_jax.runtime.settings import setting
from dawm_jax.types import Metrics, Params

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """How a model is fitted to the data: the settings that every model shares."""

    steps: int = setting(100_000, "gradient steps", at_least=1)
    batch_size: int = setting(256, "examples of a minibatch", at_least=1)
    learning_rate: float = setting(1e-3, "peak of Adam's rate", above=0.0)
    schedule: str = setting(
        "cosine", "schedule of the learning rate over the steps", choices=("cosine", "constant")
    )
    ema_decay: float = setting(
        0.995, "decay per gradient step of the averaged parameters", at_least=0.0, below=1.0
    )
    checkpoint_steps: int = setting(20_000, "gradient steps between checkpoints", at_least=1)
    log_steps: int = setting(
        2_000, "gradient steps of one program call, and between log lines", at_least=1
    )


class ShardFn(Protocol):
    """Spreads the leading axis of a batch over devices, inside a compiled program."""

    def __call__(self, batch: Tree, /) -> Tree: ...


class MeanFn(Protocol):
    """The mean over devices of what each computed from its part of a batch."""

    def __call__(self, values: Tree, /) -> Tree: ...


def keep(tree: Tree) -> Tree:
    """The `ShardFn` and `MeanFn` of a single device: returns its argument."""
    return tree


class Trainable(Protocol):
    """A model that is fitted to the replay before the agents are trained."""

    @property
    def settings(self) -> FitSettings:
        """How the model is fitted."""

    def init(self, key: jax.Array) -> TrainState:
        """A fresh training state; `key` is consumed."""

    def step(
        self,
        state: TrainState,
        key: jax.Array,
        replay: Replay,
        *,
        shard: ShardFn,
        mean: MeanFn,
    ) -> tuple[TrainState, Metrics]:
        """One gradient step on a minibatch drawn from the training rows; `key` is consumed."""

    def errors(self, params: Params, replay: Replay, rows: jax.Array) -> Metrics:
        """Named errors on the given rows of the replay, for diagnostics."""


# --- denoisers ----------------------------------------------------------------------------


class TokenShape(NamedTuple):
    """The sizes that a denoiser is built for."""

    tokens: int  # of a window: H + 1, the first one known
    inputs: int  # channels of a token that the denoiser sees, at least `channels`
    channels: int  # of a token, the first ones of the input; the denoiser predicts them
    action_size: int  # A, of the known first action
    on_action: bool  # whether the first action is a condition at all


class DenoiserCondition(NamedTuple):
    """What a denoiser is conditioned on beside the diffusion step."""

    action: jax.Array  # [B, A], the first action; ignored without `TokenShape.on_action`
    return_to_go: jax.Array  # [B], scaled
    conditioned: jax.Array  # [B], 1 where the return-to-go is given, 0 where it is null


class Denoiser(Protocol):
    """A network that predicts the diffusion target of noisy windows."""

    def init(self, key: jax.Array) -> Params:
        """Parameters; `key` is consumed."""

    def __call__(
        self, params: Params, x: jax.Array, step: jax.Array, condition: DenoiserCondition
    ) -> jax.Array:
        """The prediction.

        Args:
          params: parameters of the network.
          x: [B, T, inputs] noisy tokens; token 0 is known and clean.
          step: [B] diffusion step.
          condition: leading axis B.

        Returns:
          [B, T, C] float32.
        """


SettingsT = TypeVar("SettingsT")
SettingsT_contra = TypeVar("SettingsT_contra", contravariant=True)


class MakeDenoiser(Protocol[SettingsT_contra]):
    """Builds a denoiser."""

    def __call__(
        self, settings: SettingsT_contra, shape: TokenShape, *, dtype: jax.typing.DTypeLike
    ) -> Denoiser:
        """Builds a denoiser.

        Args:
          settings: section of the denoiser.
          shape: sizes of the tokens and the action.
          dtype: type of the computation; parameters and the output are float32.
        """


@dataclasses.dataclass(frozen=True)
class DenoiserSpec(Generic[SettingsT]):
    """A registered denoiser.

    Attributes:
      name: value of `config.world_model.denoiser` and, for plans, of `config.planner.denoiser`;
        also the name of the denoiser's section.
      label: display name, in logs and tables.
      settings: dataclass of its section.
      make: builds the denoiser.
    """

    name: str
    label: str
    settings: type[SettingsT]
    make: MakeDenoiser[SettingsT]


DENOISERS: Registry[DenoiserSpec[Any]] = Registry(
    "denoiser", setting="config.world_model.denoiser", rooms=("dawm_jax.models",)
)
