"""Every setting of every section: its defaults, its range, and configurations of older runs.

The wrong values are made from the declarations, so that a new setting is tested without being
named here.
"""

import copy
import dataclasses
import json
import math
import pathlib
import typing

import ml_collections
import pytest

from dawm_jax.config import help, schema
from dawm_jax.runtime import run_folder, settings
from dawm_jax.runtime.settings import SCALES, setting
from dawm_jax.types import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIELDS = {name.removeprefix("config."): spec for name, spec in schema.fields()}
VARIANTS = {"full": "", "quick": "quick", "smoke": "smoke"}


def default_config(**changes):
    return schema.replace(schema.parse(schema.get_config("smoke")), changes)


def is_tuple(spec):
    return typing.get_origin(spec.type) is tuple


def whole(spec):
    return spec.type is int or is_tuple(spec)


def outside(spec):
    """Numbers just outside of a range, and those that are in no range."""
    gap = 1 if whole(spec) else 1e-3
    values = [] if whole(spec) else [math.nan, math.inf, -math.inf]
    if spec.choices:
        return [*values, max(spec.choices) + 1] if not isinstance(spec.choices[0], str) else values
    if spec.at_least is not None:
        values.append(spec.at_least - gap)
    if spec.above is not None:
        values.append(spec.above)
    if spec.at_most is not None:
        values.append(spec.at_most + gap)
    if spec.below is not None:
        values.append(spec.below)
    return [int(value) if whole(spec) else value for value in values]


def wrong_values(spec):
    """Values that a setting must refuse: outside of its range, or of another type."""
    if is_tuple(spec):
        items = [*outside(spec), 1.5, math.nan, "1", True, None]
        lists = [(*spec.default("full"), item) for item in items]
        return [*lists, *([()] if spec.non_empty else []), 3, "(3,)", None]
    if spec.type is bool:
        return ["True", 0, 1, None, ()]
    if spec.type is str:
        empty = [""] if spec.non_empty and not spec.choices else []
        unknown = ["no such choice"] if spec.choices else []
        return [*empty, *unknown, 1, True, None, ("a",)]
    wrong = [*outside(spec), "1", True, None, (1,)]
    return [*wrong, 1.5, 2.0] if spec.type is int else wrong


# --- defaults and ranges ------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_every_default_is_in_its_range(scale):
    config = schema.parse(schema.get_config(VARIANTS[scale]))
    values = schema.to_dict(config)
    for name, spec in FIELDS.items():
        if name in ("variant", "environment", "dataset"):
            continue
        assert spec.allows(spec.default(scale)), name
        section, _, field = name.rpartition(".")
        found = (values[section] if section else values)[field]
        assert found == spec.default(scale), name
        assert type(found) is (tuple if is_tuple(spec) else spec.type), name


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_values_are_refused(name):
    """By the name of the setting, in one line that says what is expected and what came."""
    spec = FIELDS[name]
    refused = wrong_values(spec)
    assert refused
    for value in refused:
        with pytest.raises(UserError) as error:
            default_config(**{name: value})
        message = str(error.value)
        assert message == f"config.{name}: expected {spec.describe_range()}, got {value!r}"
        assert "\n" not in message


@pytest.mark.parametrize(
    "name", [name for name, spec in FIELDS.items() if spec.type in (int, float)]
)
def test_numbers_are_declared_with_what_bounds_them(name):
    """No size, count or rate is unbounded below; the few numbers of any sign are named here."""
    spec = FIELDS[name]
    bounded = spec.choices or spec.at_least is not None or spec.above is not None
    assert bounded or name in ("rollout.target_factor", "planner.target_fraction")


def test_every_range_allows_its_ends():
    for name, spec in FIELDS.items():
        for bound, allowed in ((spec.at_least, True), (spec.at_most, True)):
            if bound is not None and not spec.choices:
                value = (int(bound),) if is_tuple(spec) else spec.type(bound)
                assert spec.allows(value) == allowed, name


@pytest.mark.parametrize("value", [1, 0])
def test_a_whole_number_becomes_a_float(value):
    config = default_config(**{"rollout.guidance": value})
    assert type(config.rollout.guidance) is float


def test_a_list_becomes_a_tuple():
    """As in a configuration that was stored as JSON."""
    assert default_config(**{"unet.multipliers": [1]}).sections["unet"].multipliers == (1,)


# --- settings that depend on each other ---------------------------------------------------


_EVERY_1000 = {
    f"online.{name}": 1_000 for name in ("refit_every", "evaluation_interval", "log_steps")
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"agent": "sac"},
            r"config\.agent: expected one of bc, iql, rebrac, rlpd, td3_bc, got 'sac'",
        ),
        ({"world_model.denoiser": "mlp"}, r"config\.world_model\.denoiser: expected one of"),
        (
            {"rollout.updates_per_round": 5},
            r"config\.rollout\.updates_per_round: expected a multiple of 2, the critic updates of "
            r"one TD3\+BC update, got 5",
        ),
        (
            {"training.updates": 41},
            r"config\.training\.updates: expected a multiple of config\.rollout\."
            r"updates_per_round \(4\), got 41",
        ),
        ({"training.log_updates": 2}, r"log_updates: expected a multiple of"),
        ({"training.checkpoint_updates": 21}, r"checkpoint_updates: expected a multiple of"),
        (
            {"rollout.buffer_capacity": 55},
            r"buffer_capacity: expected room for a round \(56 transitions\), got 55",
        ),
        ({"rollout.eta": 1.0}, r"config\.rollout\.eta: expected 0 with config\.rollout\.order 2"),
        ({"planner.order": 2, "planner.eta": 1.0}, r"config\.planner\.eta: expected 0 with"),
        ({"unet.dim": 12}, r"config\.unet\.dim: expected a multiple of the 8 groups, got 12"),
        ({"unet.dim": 5, "unet.groups": 5}, r"config\.unet\.dim: expected an even number, got 5"),
        ({"unet.kernel_size": 4}, r"config\.unet\.kernel_size: expected an odd number, got 4"),
        ({"rlpd.target_critics": 11}, r"config\.rlpd\.target_critics: expected at most"),
        (
            {"online.steps": 10_000, "online.offline_fraction": 0.5},
            r"config\.online: expected .* to be 1, got 0\.5 \+ 0\.5 \+ 0\.25 = 1\.25",
        ),
        (
            {"online.steps": 10_005},
            r"config\.online\.steps: expected a multiple of config\.online\.envs \(4\)",
        ),
        (
            {"online.steps": 10_000, "online.refit_every": 55},
            r"config\.online\.refit_every: expected a multiple of config\.online\.envs",
        ),
        (
            {"online.steps": 40},
            r"config\.online\.warm_up: expected less than config\.online\.steps \(40\), .* got 40",
        ),
        (
            {"online.steps": 10_000, "online.buffer_capacity": 3},
            r"config\.online\.buffer_capacity: expected room for one step of all 4",
        ),
        (
            {"online.steps": 10_000, "online.envs": 250, "num_seeds": 5} | _EVERY_1000,
            r"config\.online\.envs: expected at most 204 with 5 seeds",
        ),
        ({"environment_kwargs": "[1]"}, r"config\.environment_kwargs: expected a JSON object"),
        ({"environment_kwargs": "gravity=1"}, r"environment_kwargs: expected a JSON object such"),
    ],
)
def test_settings_that_exclude_each_other(changes, message):
    with pytest.raises(UserError, match=message) as error:
        default_config(**changes)
    assert "\n" not in str(error.value)


def test_a_fine_tuning_that_is_off_is_not_checked():
    default_config(**{"online.offline_fraction": 0.9, "online.refit_every": 55})


def test_keyword_arguments_of_the_environment_are_json():
    config = default_config(environment_kwargs='{"terminate_when_unhealthy": false, "a": [1, 2]}')
    assert config.environment_arguments == {"terminate_when_unhealthy": False, "a": [1, 2]}


def test_a_round_may_fill_the_buffer_exactly():
    assert default_config(**{"rollout.buffer_capacity": 56}).rollout.buffer_capacity == 56


def test_an_agent_of_one_batch_takes_any_round():
    assert default_config(agent="iql", **{"rollout.updates_per_round": 1}).agent == "iql"


# --- variants -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "dataset"),
    [
        ("", "bundled/hopper/medium-v0"),
        ("quick", "bundled/hopper/medium-v0"),
        ("expert", "dawm/hopper/expert-v1"),
        ("medium-replay,quick", "dawm/hopper/medium-replay-200k-v1"),
        ("random,smoke", "dawm/hopper/random-10k-v1"),
    ],
)
def test_a_tier_names_its_dataset(variant, dataset):
    assert schema.get_config(variant).dataset == dataset
    assert schema.parse(schema.get_config(variant)).variant == variant


def test_a_task_without_a_bundled_set_takes_its_medium_tier():
    config = schema.get_config("smoke", environment="Walker2d-v5")
    assert config.dataset == "dawm/walker2d/medium-10k-v1"
    assert schema.get_config("", environment="Walker2d-v5", dataset="x").dataset == "x"


def test_a_task_says_which_columns_are_generated():
    columns = lambda environment: (
        schema.get_config(environment=environment).world_model.state_columns
    )
    assert (columns("Hopper-v5"), columns("Pendulum-v1")) == (0, 0)
    assert (columns("Ant-v5"), columns("Humanoid-v5")) == (27, 45)


@pytest.mark.parametrize("variant", ["", "quick", "smoke"])
def test_runs_from_before_columns_were_inferred_are_those_that_generate_all(variant):
    """They can be resumed, and their models shared."""
    values = schema.to_dict(schema.parse(schema.get_config(variant)))
    old = copy.deepcopy(values)
    for name in ("state_columns", "derived_hidden"):
        del old["world_model"][name]
    assert schema.migrate(old) == values


def test_the_fast_planner():
    planner = schema.parse(schema.get_config("quick,fast-planner")).sections["planner"]
    assert {name: getattr(planner, name) for name in schema.FAST_PLANNER} == schema.FAST_PLANNER
    usual = schema.parse(schema.get_config("quick")).sections["planner"]
    assert dataclasses.replace(usual, **schema.FAST_PLANNER) == planner
    full = schema.parse(schema.get_config("fast-planner")).sections["planner"]
    assert dataclasses.replace(full, denoiser=planner.denoiser) == planner


@pytest.mark.parametrize("variant", ["fast", "quick,medium", "quick,smoke", "smoke,smoke", "full"])
def test_unknown_variants(variant):
    with pytest.raises(ValueError, match=r"unknown variant .*expected quick, smoke") as error:
        schema.get_config(variant)
    assert "\n" not in str(error.value)


def test_a_typo_cannot_be_assigned():
    config = schema.get_config("smoke")
    with pytest.raises(AttributeError, match="guidance"):
        config.rollout.guidence = 1.0


# --- reading and writing ------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_parsing_inverts_writing(scale):
    """Also through JSON, as config.json stores it."""
    config = schema.parse(schema.get_config(VARIANTS[scale]))
    assert schema.parse(schema.to_dict(config)) == config
    assert schema.parse(json.loads(json.dumps(schema.to_dict(config)))) == config
    assert schema.parse(ml_collections.ConfigDict(schema.to_dict(config))) == config
    assert schema.migrate(schema.to_dict(config)) == schema.to_dict(config)


def test_a_configuration_cannot_be_changed():
    config = default_config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rollout.guidance = 1.0


def test_sections_that_fit_models():
    """Shared sections and those of methods; another section is refused by its name."""
    config = schema.parse(schema.get_config("quick"))
    assert config.fit_settings("world_model") is config.world_model
    assert config.fit_settings("one_step") is config.sections["one_step"]
    for name, got in (("rollout", "Rollout"), ("absent", "NoneType")):
        with pytest.raises(UserError, match=rf"^config\.{name}: expected .*got {got};"):
            config.fit_settings(name)


def test_section_by_its_class():
    config = default_config()
    for name, section in schema.owned_sections().items():
        if list(schema.all_sections().values()).count(section) == 1:
            assert config.section(section) is config.sections[name]


def test_replace_changes_only_what_it_names():
    config = default_config()
    changed = schema.replace(config, {"rollout.guidance": 2.0, "seed": 3, "td3_bc.alpha": 1.0})
    assert (changed.rollout.guidance, changed.seed) == (2.0, 3)
    assert changed.sections["td3_bc"].alpha == 1.0
    back = {"rollout.guidance": config.rollout.guidance, "seed": 0, "td3_bc.alpha": 2.5}
    assert schema.replace(changed, back) == config != changed
    assert config == default_config()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sede", r"config\.sede: unknown setting; expected variant, .*seed"),
        ("rollout.guidence", r"config\.rollout\.guidence: unknown setting; expected .*guidance"),
        ("rolout.guidance", r"config\.rolout\.guidance: unknown setting; expected .*rollout"),
        ("horizon.steps", r"config\.horizon\.steps: unknown setting"),
        ("rollout.guidance.high", r"config\.rollout\.guidance\.high: unknown setting"),
        ("rollout", r"config\.rollout: unknown setting"),
        ("", r"config\.: unknown setting"),
    ],
)
def test_replace_refuses_unknown_names(name, message):
    with pytest.raises(UserError, match=message) as error:
        schema.replace(default_config(), {name: 1})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.update(sede=1), r"config\.sede: unknown setting; expected variant"),
        (
            lambda values: values["rollout"].update(guidence=1.0),
            r"config\.rollout\.guidence: unknown setting; expected sampling_steps",
        ),
        (lambda values: values.pop("seed"), r"config\.seed is missing: expected root of"),
        (
            lambda values: values["td3_bc"].pop("alpha"),
            r"config\.td3_bc\.alpha is missing: expected",
        ),
        (lambda values: values.pop("rollout"), r"config\.rollout: expected a section of settings"),
        (
            lambda values: values.update(rollout=3),
            r"config\.rollout: expected a section of settings, got 3",
        ),
    ],
)
def test_parse_refuses_missing_and_unknown_settings(change, message):
    values = schema.to_dict(default_config())
    change(values)
    for given in (values, ml_collections.ConfigDict(values)):
        with pytest.raises(UserError, match=message) as error:
            schema.parse(given)
        assert "\n" not in str(error.value)


# --- configurations of older runs ---------------------------------------------------------

STORED = sorted((ROOT / "results").glob("**/config.json"))
NAMES = [str(path.parent.relative_to(ROOT / "results")) for path in STORED]


@pytest.mark.parametrize("path", STORED, ids=NAMES)
def test_stored_configurations_are_read(path):
    """Whatever version wrote them: each stored value is kept, under its name of today.

    A setting that was removed, the temperature of inferred actions, is dropped.
    """
    stored = run_folder.read_config(path.parent)
    config = schema.parse(schema.migrate(stored))
    assert run_folder.read_config(path.parent) == stored
    found = json.loads(json.dumps(schema.to_dict(config)))
    renamed = {spec.renamed_from: name for name, spec in FIELDS.items() if spec.renamed_from}
    for name, value in stored.items():
        for field, each in value.items() if isinstance(value, dict) else [("", value)]:
            dotted = f"{name}.{field}".strip(".")
            if dotted == "rollout.action_temperature":
                continue
            if (dotted, each) == ("method", "one_step") and "expand" not in stored["rollout"]:
                each = "one_step_cloned"  # as this version calls it
            section, _, last = renamed.get(dotted, dotted).rpartition(".")
            assert (found[section] if section else found)[last] == each, dotted


def test_the_sizes_of_the_u_net_move_to_its_section():
    stored = run_folder.read_config(
        ROOT / "results" / "earlier" / "comparison" / "hopper-dawm-td3_bc"
    )
    sizes = {"dim": 48, "multipliers": [1, 3], "kernel_size": 3, "groups": 4}
    for name in sizes:
        stored.get("unet", {}).pop(name, None)
    stored["world_model"].update(sizes)
    config = schema.parse(schema.migrate(stored))
    unet = config.sections["unet"]
    assert (unet.dim, unet.multipliers, unet.kernel_size, unet.groups) == (48, (1, 3), 3, 4)
    assert config.world_model.denoiser == "unet"
    assert set(sizes).isdisjoint(schema.to_dict(config)["world_model"])


def test_settings_that_a_run_lacks_say_how_it_behaved():
    """A run from before there were methods was DAWM's, on all episodes."""
    values = schema.to_dict(default_config())
    for name in ("method", "top_fraction", "environment_kwargs", "clip_actions"):
        del values[name]
    del values["rollout"]["real_actions_only"], values["world_model"]["denoiser"]
    for name in ("planner", "one_step", "bc", "transformer", "residual_mlp"):
        del values[name]
    config = schema.parse(schema.migrate(values))
    assert (config.method, config.top_fraction) == ("dawm", 1.0)
    assert (config.environment_arguments, config.clip_actions) == ({}, False)
    assert (config.rollout.real_actions_only, config.world_model.denoiser) == (False, "unet")


@pytest.mark.parametrize("denoiser", ["unet", "transformer"])
def test_a_planner_without_a_denoiser_of_its_own_had_the_world_models(denoiser):
    values = schema.to_dict(default_config(**{"world_model.denoiser": denoiser}))
    for name in ("denoiser", "states"):
        del values["planner"][name]
    planner = schema.parse(schema.migrate(values)).sections["planner"]
    assert (planner.denoiser, planner.states) == (denoiser, "absolute")


def test_an_older_one_step_run_rolled_out_a_cloned_policy():
    values = schema.to_dict(default_config(method="one_step"))
    assert schema.migrate(values)["method"] == "one_step"
    del values["rollout"]["expand"]
    assert schema.migrate(values)["method"] == "one_step_cloned"
    assert schema.migrate(values | {"method": "dwm"})["method"] == "dwm"


@pytest.mark.parametrize(("stored", "share"), [(0.5, 0.0), (0.0, 0.0), (1.0, 1.0)])
def test_an_older_dwm_run_mixed_no_real_rows_in(stored, share):
    values = schema.to_dict(default_config(method="dwm"))
    values["training"]["real_fraction"] = stored
    assert schema.migrate(values)["training"]["real_fraction"] == stored
    del values["rollout"]["expand"]
    assert schema.migrate(values)["training"]["real_fraction"] == share
    assert schema.migrate(values | {"method": "dawm"})["training"]["real_fraction"] == stored


@pytest.mark.parametrize("wrong", [{"rollout": 3}, {"unet": []}, {"training": None}])
def test_a_damaged_configuration_is_refused(wrong):
    with pytest.raises(UserError, match="expected a section of settings, got"):
        schema.migrate({**schema.to_dict(default_config()), **wrong})


def test_a_setting_of_a_later_version_is_refused():
    values = schema.migrate({**schema.to_dict(default_config()), "invention": 1})
    with pytest.raises(UserError, match=r"config\.invention: unknown setting"):
        schema.parse(values)


# --- what shows every setting -------------------------------------------------------------


def test_help_and_table_have_every_setting():
    lines, rows = help.text().splitlines(), help.table().splitlines()
    for name, spec in FIELDS.items():
        default = spec.default("full")
        shown = str(default).replace(" ", "") if isinstance(default, tuple) else default
        index = lines.index(f"  --config.{name}={shown}")
        assert spec.help in lines[index + 1] and spec.describe_range() in lines[index + 1]
        (row,) = (row for row in rows if row.startswith(f"| `config.{name}` |"))
        assert spec.help in row and spec.describe_range() in row
        for scale in SCALES:
            assert str(spec.default(scale)).replace(" ", "") in row.replace(" ", "")


def test_every_setting_has_a_meaning():
    for name, spec in FIELDS.items():
        assert spec.help and "\n" not in spec.help, name


# --- sections -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Extra:
    """A section that a test adds."""

    strength: float = setting(0.5, "of the extra", at_least=0.0)


@pytest.fixture(name="add")
def _add():
    """Registers a section for one test."""
    names = []

    def add(name):
        schema.SECTIONS.register(schema.SectionSpec(name, Extra))
        names.append(name)

    yield add
    for name in names:
        schema.SECTIONS.unregister(name)


def test_a_registered_section_is_part_of_every_configuration(add):
    add("extra")
    config = schema.parse(schema.get_config("quick"))
    assert config.section(Extra) == Extra(0.5)
    assert schema.replace(config, {"extra.strength": 1}).section(Extra).strength == 1.0
    assert "--config.extra.strength=0.5" in help.text()
    old = schema.to_dict(config)
    del old["extra"]
    assert schema.parse(schema.migrate(old)) == config


@pytest.mark.parametrize("name", ["td3_bc", "unet", "rollout", "world_model"])
def test_two_sections_of_one_name_are_refused(add, name):
    add(name)
    message = rf"config\.{name}: two sections have this name; rename one"
    with pytest.raises(UserError, match=message):
        schema.get_config("smoke")


def test_a_section_cannot_have_the_name_of_a_setting(add):
    add("seed")
    with pytest.raises(UserError, match=r"config\.seed: .*rename one"):
        schema.get_config("smoke")


def test_a_section_is_built_alone():
    section = settings.build(Extra, {"strength": 2}, name="config.extra")
    assert section == Extra(2.0)
