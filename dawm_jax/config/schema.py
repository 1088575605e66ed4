"""The one source of settings: names, types, ranges, units, sources and defaults.

`get_config` makes the ConfigDict that flags change, `parse` turns one into the typed, checked
`Config` that the program computes with, `migrate` gives the config.json of an older run the
settings of this version. Sources: DAWM (arXiv 2509.19538), DWM (2402.03570), DD (Decision Diffuser,
2211.15657), TD3+BC (2106.06860), IQL (2110.06169). docs/choices.md gives the measurements
behind the other defaults.
"""

import copy
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import ml_collections

from dawm_jax.agents.base import AGENTS
from dawm_jax.config.online import Online
from dawm_jax.data import TIERS
from dawm_jax.envs.recorded import parse_kwargs
from dawm_jax.envs.tasks import find_task, task_name
from dawm_jax.models.base import DENOISERS, FitSettings
from dawm_jax.models.inverse_dynamics import Settings as InverseDynamicsSettings
from dawm_jax.models.sampler import SamplerSettings
from dawm_jax.models.world_model import Settings as WorldModelSettings
from dawm_jax.runtime import run_folder, settings
from dawm_jax.runtime.registry import Registry
from dawm_jax.runtime.settings import SCALES, Section, Spec, setting
from dawm_jax.types import UserError

# Suffix of a collected dataset's name by scale: the size of a tier for shorter variants.
_SIZES = {"full": "", "quick": "-200k", "smoke": "-10k"}
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Rollout(SamplerSettings):
    """How synthetic data is generated while the agents learn."""

    target_rule: str = setting(
        "amplified",
        "return-to-go that a window aims at: amplified asks for the start's own return plus "
        "(target_factor - 1) of its magnitude, max_fraction asks every start for that fraction "
        "of the data's range of returns",
        choices=("amplified", "max_fraction"),
        source="GTA 2405.16907 (amplified)",
    )
    target_factor: float = setting(1.2, "factor of the target rule")
    start_weight: float = setting(
        0.0,
        "how much more often generated windows start in episodes of high return: the weight of "
        "an episode is its length times exp(start_weight (return - median) / MAD); with "
        "expand=sweep the first expansions are of all steps alike",
        at_least=0.0,
        source="IMLE planner, ICRA 2026",
    )
    windows_per_round: int = setting(
        256, "windows generated before each round of updates", quick=64, smoke=8, at_least=1
    )
    updates_per_round: int = setting(
        100, "gradient updates of the critics between generations", smoke=4, at_least=1
    )
    prefill_transitions: int = setting(
        50_000,
        "transitions generated before the first update; value expansions fill their buffer as "
        "`expand` says",
        quick=200_000,
        smoke=64,
        at_least=0,
    )
    buffer_capacity: int = setting(
        500_000,
        "latest synthetic transitions kept, per seed; for value expansions with expand=sweep at "
        "least all training steps",
        quick=300_000,
        smoke=512,
        at_least=1,
    )
    expand: str = setting(
        "sweep",
        "when the real pairs of value expansions (dwm) are expanded: sweep expands every training "
        "step once before the first update, and rounds then replace the oldest; minibatch draws "
        "new pairs for every minibatch and expands them there. one_step always does the latter",
        choices=("sweep", "minibatch"),
        source="DWM: minibatch",
    )
    real_actions_only: bool = setting(
        False,
        "keep only the first step of each window, whose action is real, from horizon times as "
        "many windows",
        absent=False,
    )


@dataclasses.dataclass(frozen=True)
class Training:
    """How the agents are trained."""

    updates: int = setting(
        1_000_000,
        "gradient updates of the critics",
        quick=20_000,
        smoke=40,
        at_least=1,
        source="TD3+BC, IQL",
    )
    batch_size: int = setting(
        256, "transitions of a minibatch", smoke=16, at_least=1, source="TD3+BC, IQL"
    )
    real_fraction: float = setting(
        0.5,
        "share of real transitions in a minibatch; 1 trains on real data without models, 0 on "
        "generated rows alone, as DWM and its one-step baseline were published",
        at_least=0.0,
        at_most=1.0,
        source="COMBO 2102.08363",
    )
    return_steps: int = setting(
        1,
        "steps of the return that the critics' target sums, of real and generated transitions; it "
        "ends with the episode or the generated window. 1 is one-step TD, as published; value "
        "expansions (dwm, one_step) have their own steps",
        absent=1,
        at_least=1,
        at_most=100,
    )
    real_return_steps: int = setting(
        0,
        "the same for real transitions alone; 0 takes `return_steps`",
        absent=0,
        at_least=0,
        at_most=100,
    )
    checkpoint_updates: int = setting(
        100_000, "gradient updates between checkpoints", quick=5_000, smoke=20, at_least=1
    )
    log_updates: int = setting(
        5_000,
        "gradient updates of one program call, and between log lines",
        quick=500,
        smoke=8,
        at_least=1,
    )

    @property
    def steps_of_real_returns(self) -> int:
        """Steps of the returns of real transitions."""
        return self.real_return_steps or self.return_steps

    def check_one_step(self, why: str) -> None:
        """Checks that no return has several steps.

        Args:
          why: the message's words behind "expected 1": which setting excludes such returns.

        Raises:
          UserError: a return has.
        """
        for name in ("return_steps", "real_return_steps"):
            if (steps := getattr(self, name)) > 1:
                raise UserError(f"config.training.{name}: expected 1 {why}, got {steps}")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How the agents are evaluated in the environment."""

    interval: int = setting(
        50_000,
        "gradient updates between evaluations",
        quick=2_000,
        smoke=20,
        at_least=1,
        reporting=True,
    )
    episodes: int = setting(
        10,
        "episodes per seed and evaluation",
        smoke=2,
        at_least=1,
        source="D4RL",
        reporting=True,
    )
    final_episodes: int = setting(
        50, "episodes per seed after training", quick=10, smoke=2, at_least=1, reporting=True
    )
    seed: int = setting(
        10_000,
        "of the evaluations' start states; each episode of each seed and evaluation has its own, "
        "but evaluations at equal steps of the offline training and of the fine-tuning share them",
        at_least=0,
        at_most=2**31 - 1,
    )
    max_steps: int = setting(
        0,
        "steps after which an episode is cut; 0 leaves it to the environment's own time limit",
        at_least=0,
        absent=0,
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """A run's settings.

    Attributes:
      world_model: the diffusion model and its training.
      inverse_dynamics: the inverse dynamics model, or the cloned policy, and its training.
      rollout: generation while the agents learn.
      training: of the agents.
      evaluation: of the agents.
      online: fine-tuning in the environment after the offline training.
      sections: settings of every registered agent, denoiser and method that has its own.
    """

    variant: str = setting("", "what the configuration file's argument said", non_empty=False)
    environment: str = setting("Hopper-v5", "Gymnasium id, for evaluation and action bounds")
    environment_kwargs: str = setting(
        "",
        "keyword arguments of gym.make for the environment, as a JSON object: "
        '{"terminate_when_unhealthy": false}',
        non_empty=False,
        absent="",
    )
    dataset: str = setting(
        "bundled/hopper/medium-v0",
        "bundled name, Minari id, or path of a D4RL .hdf5 file or of an .npz file of its arrays",
    )
    clip_actions: bool = setting(
        False,
        "clip actions of the data that lie outside the environment's bounds, which is an error "
        "otherwise",
        absent=False,
    )
    method: str = setting(
        "dawm", "what is trained before the agents and what the agents learn from", absent="dawm"
    )
    agent: str = setting("td3_bc", "the offline RL algorithm")
    seed: int = setting(0, "root of everything random", at_least=0, at_most=2**32 - 1)
    num_seeds: int = setting(
        5,
        "agents trained together on the same models",
        quick=1,
        smoke=2,
        at_least=1,
        at_most=10_000,
        source="DWM",
    )
    parallel: str = setting(
        "mesh",
        "how programs spread over devices; pmap works in one process only",
        choices=("mesh", "pmap"),
    )
    discount: float = setting(
        0.99,
        "gamma per step, of returns-to-go and of the agents",
        above=0.0,
        below=1.0,
        source="DWM, TD3+BC, IQL",
    )
    horizon: int = setting(
        7, "generated steps of a window, H", at_least=1, source="DWM: windows of 8 states"
    )
    return_scale: float = setting(
        0.0,
        "divisor of returns-to-go; 0 takes the largest magnitude in the data",
        at_least=0.0,
        source="DWM: 400 for Hopper",
    )
    timeout_value: str = setting(
        "zero",
        "what an episode that a time limit cut is worth after its end: nothing, or its mean "
        "reward for ever",
        choices=("zero", "average"),
    )
    held_out_fraction: float = setting(
        0.05,
        "share of episodes kept from the models for their diagnostics",
        at_least=0.0,
        at_most=0.9,
    )
    top_fraction: float = setting(
        1.0,
        "share of the episodes, highest returns first, that is used (%BC)",
        above=0.0,
        at_most=1.0,
        absent=1.0,
    )
    episodes: int = setting(
        0,
        "number of episodes that are used, drawn at random with config.seed, before top_fraction "
        "takes its share; 0 uses all",
        at_least=0,
    )
    tensorboard: bool = setting(
        False, "also write TensorBoard files (extra: tensorboard)", reporting=True
    )
    wandb_project: str = setting(
        "", "also log to this W&B project (extra: wandb)", non_empty=False, reporting=True
    )
    world_model: WorldModelSettings = dataclasses.field(kw_only=True)
    inverse_dynamics: InverseDynamicsSettings = dataclasses.field(kw_only=True)
    rollout: Rollout = dataclasses.field(kw_only=True)
    training: Training = dataclasses.field(kw_only=True)
    evaluation: Evaluation = dataclasses.field(kw_only=True)
    online: Online = dataclasses.field(kw_only=True)
    sections: Mapping[str, Any] = dataclasses.field(kw_only=True)

    def section(self, kind: type[T]) -> T:
        """The section of a class, which an agent, a denoiser or a method registered."""
        return next(value for value in self.sections.values() if type(value) is kind)

    def fit_settings(self, name: str) -> FitSettings:
        """The section of this name, which fits a model.

        Raises:
          UserError: there is none.
        """
        found = self.sections[name] if name in self.sections else getattr(self, name, None)
        if not isinstance(found, FitSettings):
            raise UserError(
                f"config.{name}: expected a section that fits a model, a subclass of "
                f"dawm_jax.models.base.FitSettings, got {type(found).__name__}; correct the "
                "sections of the MethodSpec that names it"
            )
        return found

    @property
    def environment_arguments(self) -> dict[str, Any]:
        """The keyword arguments in `environment_kwargs`."""
        return parse_kwargs(self.environment_kwargs)

    def check(self, name: str) -> None:
        """Checks that settings of different sections fit together.

        Raises:
          UserError: settings that exclude each other, or `environment_kwargs` is no JSON object.
        """
        parse_kwargs(self.environment_kwargs)
        self.online.check_copies(f"{name}.online", num_seeds=self.num_seeds)
        agent = AGENTS.get(self.agent)
        DENOISERS.get(self.world_model.denoiser)
        per_round = self.rollout.updates_per_round
        batches = agent.batches_per_update(self.sections[agent.name])
        if per_round % batches:
            raise UserError(
                f"{name}.rollout.updates_per_round: expected a multiple of {batches}, the critic "
                f"updates of one {agent.label} update, got {per_round}"
            )
        for field in ("updates", "log_updates", "checkpoint_updates"):
            value = getattr(self.training, field)
            if value % per_round:
                raise UserError(
                    f"{name}.training.{field}: expected a multiple of "
                    f"{name}.rollout.updates_per_round ({per_round}), got {value}"
                )
        room = self.rollout.windows_per_round * self.horizon
        if room > self.rollout.buffer_capacity:
            raise UserError(
                f"{name}.rollout.buffer_capacity: expected room for a round ({room} "
                f"transitions), got {self.rollout.buffer_capacity}"
            )


@dataclasses.dataclass(frozen=True)
class SectionSpec:
    """A section that a method owns.

    Attributes:
      name: of the section in the configuration.
      settings: its class.
    """

    name: str
    settings: type[Section]


SECTIONS: Registry[SectionSpec] = Registry("section", setting="config", rooms=("dawm_jax.methods",))

_SHARED: dict[str, type[Section]] = {
    "world_model": WorldModelSettings,
    "inverse_dynamics": InverseDynamicsSettings,
    "rollout": Rollout,
    "training": Training,
    "evaluation": Evaluation,
    "online": Online,
}


def owned_sections() -> dict[str, type[Section]]:
    """Sections of the registered denoisers, methods and agents, by name.

    Raises:
      UserError: two of them, or a section and a setting, have the same name.
    """
    found: dict[str, type[Section]] = {}
    taken = {*_SHARED, *settings.specs(Config)}
    for registry in (DENOISERS, SECTIONS, AGENTS):
        for entry in registry:
            if entry.name in found or entry.name in taken:
                raise UserError(f"config.{entry.name}: two sections have this name; rename one")
            settings.check_declared(entry.settings, f"config.{entry.name}")
            found[entry.name] = entry.settings
    return found


def all_sections() -> dict[str, type[Section]]:
    """Every section by name, the shared ones first."""
    return {**_SHARED, **owned_sections()}


def fields() -> Iterator[tuple[str, Spec]]:
    """(dotted name, spec) of every setting, below "config"."""
    yield from settings.rows(Config, "config")
    for name, section in all_sections().items():
        yield from settings.rows(section, f"config.{name}")


def reporting_names() -> frozenset[str]:
    """Dotted names, below "config", of the settings that a resumed run may change."""
    return frozenset(name.removeprefix("config.") for name, spec in fields() if spec.reporting)


# --- configurations that flags change -----------------------------------------------------


def get_config(
    variant: str = "", *, environment: str = "Hopper-v5", dataset: str = ""
) -> ml_collections.ConfigDict:
    """The default protocol, a shorter variant of it, or either on one of D4RL's tiers.

    Args:
      variant: "" is full size, for a GPU; "quick" takes minutes on two CPU cores;
        "smoke" takes seconds and only proves that everything runs. A tier, alone or before
        one of these ("medium-replay", "medium-replay,quick"), takes the dataset of that tier,
        which the first run that needs it collects. "fast-planner" at the end plans (method
        decision_diffuser) with the settings of DWM's comparison.
      environment: Gymnasium id.
      dataset: what to train on without a tier; "" takes the bundled set of the environment's
        task, or else the task's tier (`envs.tasks.Task.tier`).

    Raises:
      ValueError: an unknown variant.
    """
    tier, scale, fast_planner = _parse_variant(variant)
    values = settings.defaults(Config, scale)
    for name, section in all_sections().items():
        values[name] = settings.defaults(section, scale)
    task = find_task(environment)
    dataset = dataset or ("" if task is None else task.dataset)
    if tier or not dataset:
        tier = tier or ("medium" if task is None else task.tier)
        dataset = f"dawm/{task_name(environment)}/{tier}{_SIZES[scale]}-v1"
    values["world_model"]["state_columns"] = 0 if task is None else task.state_columns
    values.update(variant=variant, environment=environment, dataset=dataset)
    if fast_planner:
        values["planner"].update(FAST_PLANNER)
    config = ml_collections.ConfigDict(values)
    config.lock()
    return config


# Decision Diffuser with the settings of DWM's comparison: 3 of 5 diffusion steps, 32 states.
FAST_PLANNER: dict[str, Any] = {
    "horizon": 31,
    "diffusion_steps": 5,
    "prediction": "epsilon",
    "sampling_steps": 3,
    "order": 1,
    "eta": 1.0,
    "states": "absolute",
    "spacing": "quadratic",
    "temperature": 0.5,
}


def _parse_variant(variant: str) -> tuple[str, str, bool]:
    """A tier or "", a scale, and whether the planner is the fast one."""
    parts = [part for part in variant.split(",") if part]
    tier = parts.pop(0) if parts and parts[0] in TIERS else ""
    scale = parts.pop(0) if parts and parts[0] in SCALES[1:] else "full"
    fast = bool(parts) and parts[0] == "fast-planner"
    if parts[fast:]:
        raise ValueError(
            f"unknown variant {variant!r}: expected quick, smoke, fast-planner, one of "
            f"{', '.join(TIERS)}, or several with commas in the order medium-replay,quick"
        )
    return tier, scale, fast


# --- typed configurations -----------------------------------------------------------------


def parse(values: ml_collections.ConfigDict | Mapping[str, Any]) -> Config:
    """The typed configuration of a ConfigDict or of nested dictionaries.

    Raises:
      UserError: a value of another type or out of its range, a missing or unknown setting, or
        settings that exclude each other.
    """
    plain = values.to_dict() if isinstance(values, ml_collections.ConfigDict) else dict(values)
    classes = all_sections()
    built = {
        name: settings.build(section, _subtree(plain, name), name=f"config.{name}")
        for name, section in classes.items()
    }
    own = {name: value for name, value in plain.items() if name not in classes}
    for name, value in own.items():
        if isinstance(value, Mapping):
            raise UserError(
                f"config.{name}: no registered agent, denoiser or method has this section; import "
                "the file that registers it first"
            )
    top = settings.checked(Config, own, name="config")
    shared = {name: built[name] for name in _SHARED}
    owned = {name: section for name, section in built.items() if name not in _SHARED}
    arguments: dict[str, Any] = {**top, **shared, "sections": owned}
    config = Config(**arguments)
    config.check("config")
    return config


def _subtree(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if name not in values and name not in _SHARED:
        raise UserError(
            f"config.{name}: this configuration has no such section; import the file that "
            "registers it before you make the configuration"
        )
    subtree = values.get(name)
    if not isinstance(subtree, Mapping):
        raise UserError(f"config.{name}: expected a section of settings, got {subtree!r}")
    return subtree


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested dictionaries, as config.json stores it; `parse` inverts it."""
    values = {name: getattr(config, name) for name in settings.specs(Config)}
    sections = {name: getattr(config, name) for name in _SHARED} | dict(config.sections)
    return {**values, **{name: dataclasses.asdict(section) for name, section in sections.items()}}


def replace(config: Config, changes: Mapping[str, Any]) -> Config:
    """The configuration with some settings changed, checked as `parse` does.

    Args:
      config: to start from.
      changes: dotted name below "config" -> value, as in {"rollout.guidance": 2.0}.

    Raises:
      UserError: an unknown setting, or a value that `parse` refuses.
    """
    values = to_dict(config)
    known = [name.removeprefix("config.").rpartition(".") for name, _ in fields()]
    for dotted, value in changes.items():
        section, _, name = dotted.rpartition(".")
        names = [other for parent, _, other in known if parent == section]
        if name not in names:
            expected = ", ".join(names or all_sections())
            raise UserError(f"config.{dotted}: unknown setting; expected {expected}")
        (values[section] if section else values)[name] = value
    return parse(values)


# --- configurations of older runs ---------------------------------------------------------


# Settings of older versions without an effect on any run whose checkpoints can be restored.
_REMOVED = ("rollout.action_temperature",)


def of_run(workdir: pathlib.Path) -> Config:
    """The configuration that a run's folder stores, of whatever version wrote it.

    Raises:
      UserError: there is none, it is damaged, or this version refuses one of its settings.
    """
    return parse(migrate(run_folder.read_config(workdir)))


def migrate(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration of any version with the settings of this one.

    Settings and methods that were renamed get their name of this version; settings that the
    stored configuration lacks, or that had no effect on its method, get the value that describes
    how its run behaved; settings in `_REMOVED` are dropped.

    Raises:
      UserError: what should be a section of settings is none.
    """
    values: dict[str, Any] = copy.deepcopy(dict(stored))
    for name in all_sections():
        values.setdefault(name, {})
        _subtree(values, name)
    if "expand" not in values["rollout"]:
        _translate_methods(values)
    for dotted in _REMOVED:
        _pop(values, dotted, None)
    for dotted, spec in fields():
        *path, name = dotted.split(".")[1:]
        section = functools.reduce(lambda node, key: node.setdefault(key, {}), path, values)
        if name not in section:
            absent = _value(values, spec.absent_from) if spec.absent_from else spec.absent
            section[name] = _pop(values, spec.renamed_from, absent)
    return values


def _translate_methods(values: dict[str, Any]) -> None:
    """Says in settings of this version what methods of those without `rollout.expand` did."""
    method, training = values.get("method"), values["training"]
    if method == "one_step":
        values["method"] = "one_step_cloned"
    if method == "dwm" and training.get("real_fraction") != 1.0:
        training["real_fraction"] = 0.0  # value expansions were not mixed with real rows


def _value(values: Mapping[str, Any], dotted: str) -> Any:
    """The value of a setting; `migrate` fills shared sections before those that refer to them."""
    return functools.reduce(lambda node, key: node[key], dotted.split("."), values)


def _pop(values: dict[str, Any], dotted: str, default: Any) -> Any:
    *path, name = dotted.split(".")
    section = functools.reduce(lambda node, key: node.get(key, {}), path, values)
    return section.pop(name, default)
