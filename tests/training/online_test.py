"""The fine-tuning: what its updates see and move, its environment steps, and its resumption."""

import dataclasses
import json
import shutil

import chex
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_run import small_config

from dawm_jax.agents.base import AGENTS
from dawm_jax.config import schema
from dawm_jax.data.load import load_dataset
from dawm_jax.data.replay import gather_transitions
from dawm_jax.envs import copies as copying
from dawm_jax.methods import base as methods
from dawm_jax.runtime import loop, sharding
from dawm_jax.runtime.checkpoint import Checkpoints
from dawm_jax.training import artifacts, cost_model, fine_tuning, online, setup, train
from dawm_jax.training.fused import AgentRun, Inputs
from dawm_jax.training.load_run import load_run
from dawm_jax.types import UserError

STEPS, ENVS = 160, 4
OFFLINE = ("world_model", "inverse_dynamics", "agent")


def online_config(**changes):
    found = {
        "online__steps": STEPS,
        "online__cloning_decay": 0.5,
        "online__share_decay": 0.5,
        "online__checkpoint_steps": 80,
        "online__evaluation_interval": 80,
    }
    return small_config(**{**found, **changes})


def real_config(**changes):
    shares = {"online__offline_fraction": 0.5, "online__generated_fraction": 0.0}
    return online_config(**{"training__real_fraction": 1.0, **shares, **changes})


# --- one seed's programs ------------------------------------------------------------------


def test_without_generated_rows_no_model_is_refitted():
    shares = {"online__offline_fraction": 0.5, "online__generated_fraction": 0.0}
    config = online_config(**shares)
    replay, normalizer = setup.build_replay(config, load_dataset(config.dataset))
    parts = setup.make(config, normalizer, num_train=replay.num_train)
    tuning = online.make(parts, num_train=replay.num_train)
    assert parts.generator is not None  # it generated before
    assert not tuning.refits and not tuning.models
    run = jax.vmap(parts.training.init)(jax.random.split(jax.random.key(0), config.num_seeds))
    placement = sharding.place("mesh", num_seeds=config.num_seeds, batch_sizes={})
    learner = online.begin(
        tuning, run, None, placement, num_seeds=config.num_seeds, key=jax.random.key(0)
    )
    assert learner.generated is None and learner.models == {}


def tuned(config):
    """The programs of a run on real data, its dataset, and a learner that has lived 3 turns."""
    replay, normalizer = setup.build_replay(config, load_dataset(config.dataset))
    parts = setup.make(config, normalizer, num_train=replay.num_train)
    tuning = online.make(parts, num_train=replay.num_train)
    learner = fine_tuning.Learner(
        agent=tuning.training.agent.init(jax.random.key(0)),
        models={},
        generated=None,
        lived=online.empty_ring(tuning),
    )
    lived = learner.lived
    for turn in range(3):
        rows = gather_transitions(replay, jnp.arange(ENVS) + 7 * turn)
        step = online.LivedStep(*rows[:5], ended=jnp.zeros(ENVS, jnp.bool_))
        lived = online.living.remember(lived, step)
    return tuning, replay, dataclasses.replace(learner, lived=lived)


@pytest.mark.parametrize("name", AGENTS.names())
def test_the_policy_stays_bit_for_bit_in_the_warm_up(name):
    decay = 1.0 if name in ("bc", "rlpd") else 0.5
    tuning, replay, learner = tuned(real_config(agent=name, online__cloning_decay=decay))
    update, policy = jax.jit(tuning.update), AGENTS.get(name).policy
    before = learner.agent

    def moved(step):
        after = update(learner, jax.random.key(1), jnp.int32(step), replay)[0].agent
        same = lambda a, b: all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))
        return {f for f in vars(before) if not same(getattr(before, f), getattr(after, f))}

    warm_up = tuning.settings.warm_up
    everything = moved(warm_up)
    assert moved(warm_up - ENVS) == everything - set(policy)
    assert "actor" in everything


@pytest.mark.parametrize("step, expected", [(ENVS, (8, 0, 8)), (STEPS, (4, 0, 12))])
def test_minibatches_have_exactly_their_shares(step, expected):
    """At the end half of the offline rows have gone over to online ones."""
    tuning, replay, learner = tuned(real_config())
    numbers = tuning.counts(jnp.int32(step))
    assert tuple(int(number) for number in numbers) == expected
    # A reward tells where a row comes from.
    marked = replay.replace(
        transitions=replay.transitions._replace(
            reward=jnp.full_like(replay.transitions.reward, -5.0)
        )
    )
    draw = jax.jit(tuning.draw_batches)
    run = AgentRun(learner.agent, None)
    batches = draw(jax.random.key(2), run, learner.lived, Inputs(None, marked), numbers)
    assert batches.reward.shape == (2, 16)
    np.testing.assert_array_equal((np.asarray(batches.reward) == -5.0).sum(1), expected[0])
    lived = np.asarray(learner.lived.rows.observation)[:3].reshape(3 * ENVS, -1)
    for batch in np.asarray(batches.observation):
        assert all((lived == row).all(1).any() for row in batch[expected[0] :])


def test_the_pull_begins_to_decay_after_the_warm_up():
    tuning, _, _ = tuned(real_config())
    warm_up = tuning.settings.warm_up
    half = (warm_up + STEPS) // 2
    for step, expected in ((0, 1.0), (warm_up, 1.0), (half, 0.5**0.5), (STEPS, 0.5)):
        np.testing.assert_allclose(tuning.pull(jnp.int32(step)), expected, rtol=1e-6)


def test_actions_are_the_policys_with_noise_of_their_deviation():
    tuning, _, learner = tuned(real_config(online__noise=0.05))
    observation = jnp.zeros((4_000, 11))
    action = tuning.act(learner.agent, observation, jax.random.key(0), jnp.int32(8))
    plain = tuning.training.agent.act(learner.agent, observation)
    noise = np.asarray(action - plain)
    assert abs(noise.mean()) < 0.002
    np.testing.assert_allclose(noise.std(), 0.05, rtol=0.02)


def test_schedules_begin_anew_and_moments_stay(standard_promotion):
    optimizer = optax.adam(optax.cosine_decay_schedule(1.0, 10))
    params = {"w": jnp.ones(2)}
    state = optimizer.init(params)
    for _ in range(10):
        _, state = optimizer.update({"w": jnp.ones(2)}, state)
    again = online.restart_schedules({"opt": state})["opt"]
    updates, _ = optimizer.update({"w": jnp.ones(2)}, again)
    np.testing.assert_allclose(updates["w"], -1.0, rtol=1e-5)  # the first rate, not the last
    np.testing.assert_array_equal(again[0].mu["w"], state[0].mu["w"])


@pytest.mark.parametrize("method", ["dawm", "dwm", "joint", "one_step", "one_step_cloned"])
def test_every_method_that_trains_agents_can_be_fine_tuned(method):
    """What the programs return has the shapes of what they got; nothing is compiled."""
    config = online_config(method=method)
    replay, normalizer = setup.build_replay(config, load_dataset(config.dataset))
    tuning = online.make(setup.make(config, normalizer), num_train=replay.num_train)
    key = jax.random.key(0)

    def begin():
        return fine_tuning.Learner(
            agent=tuning.training.agent.init(key),
            models={name: model.init(key) for name, model in tuning.models.items()},
            generated=tuning.training.init_buffer(),
            lived=online.empty_ring(tuning),
        )

    learner = jax.eval_shape(begin)
    assert learner.models
    step = jnp.int32(80)
    refitted = jax.eval_shape(tuning.refit, learner, key, step, replay)
    chex.assert_trees_all_equal_shapes_and_dtypes(refitted, learner)
    updated, metrics = jax.eval_shape(tuning.update, learner, key, step, replay)
    chex.assert_trees_all_equal_shapes_and_dtypes(updated, learner)
    assert {"q_mean", "online_share", "pull"} <= set(metrics)


# --- the whole stage ----------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost_model, "plan", lambda *args: [])
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, train.run(online_config(), workdir)


def before_online(source, workdir, config):
    """Makes `workdir` what the undisturbed run's folder was when the stage began."""
    for name in OFFLINE:
        shutil.copytree(source / "checkpoints" / name, workdir / "checkpoints" / name)
    for name in ("config.json", "dataset.json"):
        shutil.copy(source / name, workdir / name)
    lines = (source / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["stage"] in OFFLINE]
    (workdir / "metrics.jsonl").write_text("".join(kept))


def final_state(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints" / "online")
    try:
        return checkpoints.latest_step(), checkpoints.entry("state")
    finally:
        checkpoints.close()


def recorded(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in x.items() if "seconds" not in k and k != "crc"} for x in lines]


class Crash(Exception):
    """Stands for a process that dies."""


class Crashing:
    """Steps that raise once those up to `step` are made."""

    def __init__(self, steps, step):
        self._steps, self._step = steps, step

    def compile(self, state, num_steps):
        self._steps.compile(state, num_steps)

    def __call__(self, state, first_step, num_steps):
        if first_step + num_steps > self._step:
            raise Crash
        return self._steps(state, first_step, num_steps)


def test_a_stopped_run_ends_bit_for_bit_like_an_undisturbed_one(undisturbed, tmp_path, monkeypatch):
    """It stops 20 steps after its checkpoint at step 80, in the middle of episodes."""
    before_online(undisturbed[0], tmp_path, online_config())
    run = loop.Session.run

    def crashing(self, stage, state):
        if stage.name == online.STAGE:
            stage = dataclasses.replace(stage, steps=Crashing(stage.steps, 100))
        return run(self, stage, state)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Session, "run", crashing)
        with pytest.raises(Crash):
            train.run(online_config(), tmp_path)
    step, halfway = final_state(tmp_path)
    assert step == 80
    assert halfway["episodes"]["elapsed"].max() > 0
    train.run(online_config(), tmp_path)
    last, expected = final_state(undisturbed[0])
    assert last == STEPS
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path)[1], expected)
    assert recorded(tmp_path) == recorded(undisturbed[0])


def test_online_rows_are_those_of_a_plain_loop_of_the_environment(undisturbed):
    config = online_config()
    run = load_run(undisturbed[0])
    low, high = np.asarray(run.normalizer.action_low), np.asarray(run.normalizer.action_high)
    mean = np.asarray(run.normalizer.observation_mean)
    std = np.asarray(run.normalizer.observation_std)
    ring = {
        name: leaf[0]  # the only seed
        for name, leaf in final_state(undisturbed[0])[1]["learner"]["lived"]["transitions"].items()
    }
    assert ring["reward"].shape == (STEPS // ENVS, ENVS)
    ends = 0
    for copy in range(ENVS):
        env, episode = gym.make(config.environment), 0
        observation, _ = env.reset(seed=copying.reset_seed(config.seed, copy, episode))
        for turn in range(STEPS // ENVS):
            row = {name: leaf[turn, copy] for name, leaf in ring.items()}
            standardised = (observation.astype(np.float32) - mean) / std
            np.testing.assert_array_equal(row["observation"], standardised)
            action = low + (row["action"] + np.float32(1.0)) * ((high - low) / 2)
            observation, reward, terminated, truncated, _ = env.step(action)
            standardised = (observation.astype(np.float32) - mean) / std
            np.testing.assert_array_equal(row["next_observation"], standardised)
            assert row["reward"] == np.float32(reward)
            assert row["terminated"] == terminated
            assert row["ended"] == (terminated or truncated)
            if terminated or truncated:
                episode, ends = episode + 1, ends + 1
                seed = copying.reset_seed(config.seed, copy, episode)
                observation, _ = env.reset(seed=seed)
        env.close()
    lines = [x for x in recorded(undisturbed[0]) if (x["stage"], x["kind"]) == ("online", "train")]
    assert sum(line["episodes"] for line in lines) == ends


def test_refits_move_the_models_and_replace_generated_rows(undisturbed):
    """The only refit before the last step is at step 80."""
    models = load_run(undisturbed[0]).models
    learner = final_state(undisturbed[0])[1]["learner"]
    for name, average in models.items():
        fitted = jax.tree.leaves(learner["models"][name]["average"])
        moved = [
            not np.array_equal(a[0], b)
            for a, b in zip(fitted, jax.tree.leaves(jax.device_get(average)), strict=True)
        ]
        assert any(moved), name


def test_results_have_the_curve_its_area_and_the_cost(undisturbed):
    workdir, results = undisturbed
    found = results.online
    assert [point.at for point in found.curve] == [0, 80, STEPS]
    assert found.curve[0].returns.mean == results.final.returns.mean
    first, middle, last = (point.scores.mean for point in found.curve)
    np.testing.assert_allclose(found.area.scores.mean, (first + 2 * middle + last) / 4)
    assert found.seconds_per_step == pytest.approx(results.stages["online"].seconds / STEPS)
    assert found.updates == STEPS - ENVS
    assert f"after {STEPS} environment steps score" in artifacts.headline(results)
    assert (workdir / "curves.png").stat().st_size > 10_000


def test_the_curve_of_new_agents_has_no_offline_evaluation(tmp_path):
    results = train.run(real_config(online__fresh_agent=True), tmp_path)
    curve = results.online.curve
    assert [point.at for point in curve] == [80, STEPS]
    first, last = (point.returns.mean for point in curve)
    np.testing.assert_allclose(results.online.area.returns.mean, (first + last) / 2)


def test_the_loaded_policy_is_the_fine_tuned_one(undisturbed):
    policies = load_run(undisturbed[0]).policies
    expected = final_state(undisturbed[0])[1]["learner"]["agent"]
    for field in ("actor", "critics", "target_actor", "target_critics"):
        found = jax.device_get(getattr(policies, field))
        jax.tree.map(np.testing.assert_array_equal, found, expected[field])


def test_a_loaded_run_is_fine_tuned_as_by_the_command(undisturbed, tmp_path):
    """An offline run, and then `finetune` with the same settings: the same numbers."""
    offline = tmp_path / "offline"
    offline.mkdir()
    before_online(undisturbed[0], offline, None)
    config = schema.replace(online_config(), {"online.steps": 0})
    (offline / "config.json").unlink()
    train.run_folder.write_config(offline, schema.to_dict(config))
    results = train.run(config, offline)
    assert results.online is None and "online" not in results.stages
    changed = load_run(offline).finetune(tmp_path / "tuned", steps=STEPS)
    jax.tree.map(
        np.testing.assert_array_equal,
        final_state(tmp_path / "tuned")[1],
        final_state(undisturbed[0])[1],
    )
    assert recorded(tmp_path / "tuned") == recorded(undisturbed[0])
    with pytest.raises(UserError, match="it was fine-tuned already"):
        changed.finetune(tmp_path / "again", steps=STEPS)
    # A folder with anything else would be trained anew.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "log.txt").touch()
    with pytest.raises(UserError, match=r"absent, empty or an earlier call's, got a .* log\.txt"):
        load_run(offline).finetune(tmp_path / "other", steps=STEPS)
    with pytest.raises(UserError, match=r"config\.online\.stepz: unknown setting"):
        load_run(offline).finetune(tmp_path / "again", stepz=STEPS)
    # What the offline run excludes is refused before the folder is taken.
    cloned = dataclasses.replace(load_run(offline), config=schema.replace(config, {"agent": "bc"}))
    with pytest.raises(UserError, match="cloning_decay: expected 1 with agent 'bc'"):
        cloned.finetune(tmp_path / "again", steps=STEPS)
    assert not (tmp_path / "again").exists()


# --- refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "decision_diffuser"}, r"config\.online\.steps: expected 0 with .* which plans"),
        ({"parallel": "pmap"}, r"config\.online\.steps: expected 0 with several processes or"),
        (
            {"training__real_fraction": 1.0},
            r"config\.online\.generated_fraction: expected 0 on real data only",
        ),
        (
            {"agent": "rlpd", "rlpd__policy_delay": 4, "online__envs": 2},
            r"config\.online\.updates_per_step: expected a multiple of 4 .* got 2 x 1",
        ),
        (
            {"agent": "rlpd"},
            r"config\.online\.cloning_decay: expected 1 with agent 'rlpd'",
        ),
        (
            {"training__return_steps": 2},
            r"config\.training\.return_steps: expected 1 with config\.online\.steps above 0",
        ),
    ],
)
def test_what_cannot_be_fine_tuned_is_refused_in_one_line(changes, message):
    config = online_config(**changes)
    with pytest.raises(UserError, match=message) as error:
        online.check(config, methods.check(config))
    assert "\n" not in str(error.value)


def test_an_agent_whose_policy_is_unknown_cannot_be_warmed_up(monkeypatch):
    spec = dataclasses.replace(AGENTS.get("td3_bc"), policy=())
    get = AGENTS.get
    monkeypatch.setattr(AGENTS, "get", lambda name: spec if name == "td3_bc" else get(name))
    config = online_config()
    with pytest.raises(UserError, match=r"config\.online\.warm_up: expected 0 with agent 'td3_bc'"):
        online.check(config, methods.METHODS.get(config.method))


def test_an_environment_that_cannot_be_repeated_is_told(register, caplog):
    class Noisy(gym.Env):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (11,), np.float32)
        action_space = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
        generator = np.random.default_rng(0)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.generator.normal(size=11).astype(np.float32), {}

    name = register("Noisy-v0", Noisy, max_episode_steps=5)
    config = online_config(environment=name)
    online.tell(config)
    assert "a stopped run resumes with new episodes" in caplog.text
