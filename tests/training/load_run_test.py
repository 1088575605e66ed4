"""A finished run as functions of NumPy arrays, on folders whose models are random."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import small_config, write_run

from dawm_jax.config import schema
from dawm_jax.data import normalizer as normalizing
from dawm_jax.data import replay as replaying
from dawm_jax.data.load import load_dataset
from dawm_jax.runtime import run_folder
from dawm_jax.training.load_run import load_run
from dawm_jax.types import Condition, UserError

S, A, H = 11, 3, 7


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), small_config(num_seeds=2))


@pytest.fixture(scope="module")
def run(workdir):
    return load_run(workdir)


@pytest.fixture(scope="module")
def starts():
    rng = np.random.default_rng(0)
    return rng.normal(size=(4, S)), rng.uniform(-1, 1, (4, A))


def one_line(error):
    assert "\n" not in str(error.value)


# --- loading ------------------------------------------------------------------------------


def test_repr_is_short(run):
    """An array in it would fill the screen of a notebook."""
    assert repr(run) == (
        "LoadedRun(environment='Hopper-v5', dataset='bundled/hopper/medium-v0', "
        "method='dawm', agent='td3_bc', num_seeds=2)"
    )


def test_a_folder_may_be_text(workdir, run):
    assert repr(load_run(str(workdir))) == repr(run)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"is not a run: expected a config\.json") as error:
        load_run(tmp_path)
    one_line(error)


def test_a_run_without_a_checkpoint(tmp_path, workdir):
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    message = "has no checkpoint of its world_model stage: resume the run"
    with pytest.raises(UserError, match=message) as error:
        load_run(tmp_path)
    one_line(error)


def test_a_run_without_the_checkpoint_of_a_stage(tmp_path, workdir):
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "world_model").symlink_to(workdir / "checkpoints" / "world_model")
    with pytest.raises(UserError, match="no checkpoint of its inverse_dynamics stage") as error:
        load_run(tmp_path)
    one_line(error)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rollout": 3}', '{"rollout": {"eta": "x"}}'])
def test_a_damaged_configuration(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.(json|rollout)") as error:
        load_run(tmp_path)
    one_line(error)


def older(values):
    """A configuration as it was stored before methods, denoisers and their sections existed."""
    values = json.loads(json.dumps(values))
    for name in ("method", "top_fraction", "planner", "one_step", "bc", "rebrac"):
        del values[name]
    del values["residual_mlp"], values["transformer"], values["temporal_resnet"]
    del values["world_model"]["denoiser"], values["world_model"]["states"]
    del values["rollout"]["real_actions_only"], values["rollout"]["spacing"]
    values["world_model"].update(values.pop("unet"))
    return values


def test_a_run_of_an_older_version_loads(tmp_path, starts):
    """What a configuration lacks has the value that describes the version that wrote it."""
    then = {"world_model__denoiser": "unet", "world_model__states": "absolute"}
    config = small_config(num_seeds=2, rollout__spacing="quadratic", **then)
    workdir = write_run(tmp_path / "run", config)
    run = load_run(workdir)
    (workdir / "config.json").write_text(json.dumps(older(schema.to_dict(config))))
    old = load_run(workdir)
    kept = {name: getattr(old.config, name) for name in ("rollout", "world_model", "training")}
    assert kept == {name: getattr(run.config, name) for name in kept}
    assert old.config.sections["unet"] == run.config.sections["unet"]
    same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    same((old.policies, old.models, old.normalizer), (run.policies, run.models, run.normalizer))
    np.testing.assert_array_equal(old.policy(starts[0]), run.policy(starts[0]))


# --- decisions ----------------------------------------------------------------------------


def test_the_policy_is_the_agents_action(run, starts):
    """Of each seed, bit for bit what the setup's compiled `act` gives."""
    for seed in range(2):
        agent = jax.tree.map(lambda leaf, seed=seed: leaf[seed], run.policies)
        expected = jax.jit(functools.partial(run.setup.act, agent))(starts[0].astype(np.float32))
        action = run.policy(starts[0], seed)
        np.testing.assert_array_equal(action, expected)
        assert isinstance(action, np.ndarray) and np.abs(action).max() <= 1.0
    assert np.abs(run.policy(starts[0], 0) - run.policy(starts[0], 1)).max() > 0


def test_every_seed_acts_on_its_own_observations(run, starts):
    own = np.stack([starts[0], starts[0] + 0.1])
    expected = [run.policy(own[seed], seed) for seed in range(2)]
    np.testing.assert_array_equal(run.act(own), np.stack(expected))


def test_leading_axes_are_kept(run, starts):
    batch = run.policy(starts[0])
    single = run.policy(starts[0][0])
    assert (batch.shape, single.shape) == ((4, A), (A,))
    np.testing.assert_allclose(single, batch[0], atol=1e-6)
    grid = run.policy(starts[0].reshape(2, 2, S))
    np.testing.assert_allclose(grid.reshape(4, A), batch, atol=1e-6)
    inferred = run.inverse_dynamics(starts[0], starts[0] + 0.1)
    assert inferred.shape == (4, A)
    of_one = run.inverse_dynamics(starts[0][0], starts[0][0] + 0.1)
    np.testing.assert_allclose(of_one, inferred[0], atol=1e-5)


@pytest.mark.parametrize("seed", [-1, 2])
def test_seeds_that_the_run_does_not_have(run, seed):
    with pytest.raises(UserError, match=f"seed: expected one of .* 0 to 1, got {seed}") as error:
        run.policy(np.zeros(S), seed)
    one_line(error)


@pytest.mark.parametrize("shape", [(), (S + 1,), (3, S - 1), (S, 1)])
def test_observations_of_another_size(run, shape):
    wrong = np.zeros(shape)
    calls = (
        lambda: run.policy(wrong),
        lambda: run.inverse_dynamics(wrong, np.zeros(S)),
        lambda: run.inverse_dynamics(np.zeros(S), wrong),
        lambda: run.generate_from(wrong, np.zeros(A)),
    )
    for call in calls:
        with pytest.raises(
            UserError, match=r"observation: expected an array \[\.\.\., 11\]"
        ) as error:
            call()
        one_line(error)


# --- generation from given starts ---------------------------------------------------------


def test_windows_are_the_methods(run, starts):
    """In raw units; `return_to_go` is the start's own, which the target rule changes."""
    returns = np.full(4, 100.0, np.float32)
    windows, valid = run.generate_from(*starts, return_to_go=returns, seed=3)
    condition = Condition(
        normalizing.normalise_observation(run.normalizer, jnp.asarray(starts[0], jnp.float32)),
        normalizing.normalise_action(run.normalizer, jnp.asarray(starts[1], jnp.float32)),
        returns / run.normalizer.return_scale,
    )
    made = jax.jit(run.setup.generator.generate)(run.models, jax.random.key(3), condition)
    expected = normalizing.raw_windows(run.normalizer, *made, num_windows=4)
    check = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(check, (windows, valid), expected)
    assert windows.observation.shape == (4, H, S)
    np.testing.assert_allclose(windows.observation[:, 0], starts[0], atol=1e-5)
    np.testing.assert_allclose(windows.action[:, 0], starts[1], atol=1e-6)
    assert valid[:, 0].all() and not valid.all()  # some windows end


@pytest.mark.parametrize(
    "changes", [{"training__return_steps": 3}, {"rollout__real_actions_only": True}]
)
def test_windows_have_single_steps_whatever_the_agents_learn_from(tmp_path, run, starts, changes):
    """Agents may learn from sums of rewards or from first steps; the models are those of `run`."""
    other = load_run(write_run(tmp_path / "run", small_config(num_seeds=2, **changes)))
    expected = run.generate_from(*starts, return_to_go=100.0, seed=3)
    got = other.generate_from(*starts, return_to_go=100.0, seed=3)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_a_single_start_gives_a_single_window(run, starts):
    windows, valid = run.generate_from(starts[0][:1], starts[1][:1], return_to_go=100.0)
    single, one_valid = run.generate_from(starts[0][0], starts[1][0], return_to_go=100.0)
    assert (single.observation.shape, single.reward.shape, one_valid.shape) == ((H, S), (H,), (H,))
    first = jax.tree.map(lambda leaf: leaf[0], (windows, valid))
    jax.tree.map(np.testing.assert_array_equal, (single, one_valid), first)


def test_without_a_return_the_datas_largest_is_taken(run, starts):
    largest = float(run.normalizer.return_high * run.normalizer.return_scale)
    given = run.generate_from(*starts, return_to_go=np.full(4, largest))
    jax.tree.map(np.testing.assert_array_equal, run.generate_from(*starts), given)


def test_windows_by_a_key_are_those_by_its_seed(run, starts):
    """In double precision too: NumPy arrays of float32 and bool come back."""
    returns = np.full(4, 100.0)
    windows, valid = run.generate_windows(jax.random.key(3), *starts, returns)
    assert {type(leaf) for leaf in jax.tree.leaves((windows, valid))} == {np.ndarray}
    assert (windows.reward.dtype, valid.dtype, valid.shape) == (np.float32, np.bool_, (4, H))
    by_seed = run.generate_from(*starts, return_to_go=returns, seed=3)
    jax.tree.map(np.testing.assert_array_equal, (windows, valid), by_seed)


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        ((S,), (A + 1,), r"action: expected an array \[\.\.\., 3\], got shape \[4\]"),
        ((4, S), (3, A), r"or \[B, S\] and \[B, A\], got \[4, 11\] and \[3, 3\]"),
        ((4, S), (A,), r"expected \[S\] and \[A\], or"),
        ((2, 2, S), (2, 2, A), r"expected \[S\] and \[A\], or"),
    ],
)
def test_starts_that_do_not_fit(run, observation, action, message):
    with pytest.raises(UserError, match=message) as error:
        run.generate_from(np.zeros(observation), np.zeros(action))
    one_line(error)


def test_returns_that_do_not_fit(run, starts):
    with pytest.raises(UserError, match="return_to_go") as error:
        run.generate_from(*starts, return_to_go=np.zeros(3))
    one_line(error)


# --- generation from the data -------------------------------------------------------------


def test_generated_transitions_start_in_the_data(run):
    """Rows follow one another in a window; each first row has a training step's state, action."""
    rows = run.generate(600, seed=1)
    assert rows.observation.shape == (600, S) and rows.terminated.shape == (600,)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rows))
    follows = (rows.observation[1:] == rows.next_observation[:-1]).all(axis=1)
    first = np.flatnonzero(~np.concatenate([[False], follows]))
    assert len(first) >= 600 // H
    lengths = np.diff(np.append(first, 600))
    assert lengths.max() <= H
    # A window ends at its horizon or with its termination, the last one where the rows end.
    ended = rows.terminated[np.append(first[1:], 600) - 1] > 0
    assert ((lengths == H) | ended)[:-1].all() and ended.any()
    assert rows.terminated.sum() == ended.sum()  # no row lies after a termination

    dataset = load_dataset(run.config.dataset)
    order, num_train = replaying.split_episodes(dataset.episode_ends, run.config.held_out_fraction)
    steps = order[:num_train]
    known = np.concatenate([dataset.observations[steps], dataset.actions[steps]], axis=1)
    made = np.concatenate([rows.observation[first], rows.action[first]], axis=1)
    for start in made[:30]:
        assert np.abs(known - start).max(axis=1).min() < 1e-4


def test_the_seed_decides_what_is_generated(run):
    first = run.generate(50)
    jax.tree.map(np.testing.assert_array_equal, run.generate(50), first)
    assert np.abs(run.generate(50, seed=1).observation - first.observation).max() > 1e-3
    # A longer request goes on where a shorter one ends.
    longer = run.generate(2_000)
    head = jax.tree.map(lambda leaf: leaf[:50], longer)
    jax.tree.map(np.testing.assert_array_equal, head, first)
    assert len(longer.reward) == 2_000


@pytest.mark.parametrize("count", [0, -5])
def test_too_few_transitions(run, count):
    with pytest.raises(UserError, match=f"num_transitions: expected at least 1, got {count}"):
        run.generate(count)


def test_training_data_that_is_there(run):
    replay = run.training_data()
    assert len(replay) == len(load_dataset(run.config.dataset))


def test_training_data_that_has_changed(workdir, tmp_path):
    """As if other data had the same name: the scale of its returns differs."""
    values = run_folder.read_config(workdir)
    run_folder.write_config(tmp_path, {**values, "discount": 0.9})
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    changed = load_run(tmp_path)
    for use in (changed.training_data, lambda: changed.generate(10)):
        with pytest.raises(UserError, match="is not what the run was trained on") as error:
            use()
        one_line(error)


# --- other settings of generation ---------------------------------------------------------


def test_other_settings_have_an_effect(run, starts):
    plain, _ = run.generate_from(*starts)
    guided = run.with_rollout(guidance=3.0)
    assert (guided.config.rollout.guidance, run.config.rollout.guidance) == (3.0, 1.0)
    changed, _ = guided.generate_from(*starts)
    assert np.abs(changed.observation[:, 1] - plain.observation[:, 1]).max() > 1e-3
    # What a run has compiled is not shared with the changed one.
    again, _ = run.generate_from(*starts)
    jax.tree.map(np.testing.assert_array_equal, again, plain)
    same, _ = guided.with_rollout(guidance=1.0).generate_from(*starts)
    jax.tree.map(np.testing.assert_array_equal, same, plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidence": 3.0}, r"config\.rollout\.guidence: unknown setting; expected .*guidance"),
        ({"guidance": -1.0}, "guidance: expected a number at least 0, got -1"),
        ({"guidance": "high"}, "guidance: expected a number at least 0, got 'high'"),
        ({"sampling_steps": 5_000}, "expected 1 to 1000"),
        ({"eta": 1.0}, r"eta: expected 0 with config\.rollout\.order 2"),
    ],
)
def test_wrong_settings_are_refused(run, changes, message):
    with pytest.raises(UserError, match=message) as error:
        run.with_rollout(**changes)
    one_line(error)


# --- other methods ------------------------------------------------------------------------


def test_a_run_on_real_data_has_a_policy_alone(tmp_path):
    config = small_config(training__real_fraction=1.0, agent="bc")
    run = load_run(write_run(tmp_path, config))
    assert run.models is None
    assert run.policy(np.zeros((2, S))).shape == (2, A)
    calls = (
        lambda: run.inverse_dynamics(np.zeros(S), np.zeros(S)),
        lambda: run.generate(5),
        lambda: run.generate_from(np.zeros(S), np.zeros(A)),
    )
    for call in calls:
        with pytest.raises(UserError, match="real data only") as error:
            call()
        one_line(error)


def test_a_run_of_expansions_generates_no_transitions(tmp_path):
    run = load_run(write_run(tmp_path, small_config(method="dwm")))
    assert run.policy(np.zeros(S)).shape == (A,)
    calls = (
        lambda: run.generate(5),
        lambda: run.generate_from(np.zeros(S), np.zeros(A)),
        lambda: run.generate_windows(
            jax.random.key(0), np.zeros((1, S)), np.zeros((1, A)), np.zeros(1)
        ),
    )
    for call in calls:
        with pytest.raises(UserError, match="method dwm generates no transitions") as error:
            call()
        one_line(error)
    with pytest.raises(UserError, match="method dwm has no inverse dynamics model"):
        run.inverse_dynamics(np.zeros(S), np.zeros(S))


def test_a_planning_run_plans(tmp_path):
    config = small_config(
        method="decision_diffuser", planner__horizon=3, planner__sampling_steps=1, num_seeds=2
    )
    run = load_run(write_run(tmp_path, config))
    assert run.policies is None
    observation = np.random.default_rng(0).normal(size=(2, 3, S))
    action = run.policy(observation, seed=1)
    assert action.shape == (2, 3, A) and np.abs(action).max() <= 1.0
    expected = jax.jit(run.setup.planner.plan)(
        run.models, jax.random.key(1), observation.reshape(6, S).astype(np.float32)
    )
    np.testing.assert_array_equal(action.reshape(6, A), expected)
    assert run.policy(observation[0, 0]).shape == (A,)
    with pytest.raises(UserError, match="method decision_diffuser generates no transitions"):
        run.generate_from(np.zeros(S), np.zeros(A))
