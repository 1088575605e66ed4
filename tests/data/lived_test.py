"""The ring of lived steps against plain loops over episodes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dawm_jax.data import lived
from dawm_jax.data import replay as replays
from dawm_jax.data.replay import Replay
from dawm_jax.types import Transition

COPIES, S, A = 3, 2, 1
# Last steps of each copy's episodes, and whether they are terminations.
ENDS = {0: {2: True, 6: False}, 1: {4: False}, 2: {}}
SCALE, DISCOUNT = 2.0, 0.9


def step_at(turn: int) -> lived.LivedStep:
    """Step `turn` of all copies; the observation says which step and copy it is."""
    copies = np.arange(COPIES, dtype=np.float32)
    here = np.stack([np.full(COPIES, turn, np.float32), copies], axis=-1)
    ends = [turn in ENDS[copy] for copy in range(COPIES)]
    terminated = [ENDS[copy].get(turn, False) for copy in range(COPIES)]
    return lived.LivedStep(
        observation=jnp.asarray(here),
        action=jnp.asarray(10 * copies + turn)[:, None],
        reward=jnp.asarray(np.sin(turn + 5 * copies)),
        terminated=jnp.asarray(terminated, jnp.float32),
        next_observation=jnp.asarray(here + np.float32([1.0, 0.0])),
        ended=jnp.asarray(ends),
    )


_remember = jax.jit(lived.remember)


def ring(num_steps: int, turns: int):
    buffer = lived.empty(turns=turns, copies=COPIES, state_size=S, action_size=A)
    for turn in range(num_steps):
        buffer = _remember(buffer, step_at(turn))
    return buffer


def offline_replay() -> Replay:
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return Replay(
        transitions=Transition(normal(5, S), normal(5, A), normal(5), jnp.zeros(5), normal(5, S)),
        episode_end=jnp.asarray([1, 1, 4, 4, 4], jnp.int32),
        return_to_go=normal(5),
        num_train=4,
    )


def mixed(buffer, *, fraction=0.5, timeout_value="zero") -> Replay:
    options = {"online_fraction": fraction, "timeout_value": timeout_value, "discount": DISCOUNT}
    mix = jax.jit(functools.partial(lived.mixed_replay, **options))
    return mix(offline_replay(), buffer, return_scale=jnp.float32(SCALE))


def episodes_of(copy: int, first: int, num_steps: int):
    """(steps, is terminated, is ended) of a copy's episodes, from its oldest step on."""
    steps = []
    for turn in range(first, num_steps):
        steps.append(turn)
        if turn in ENDS[copy]:
            yield steps, ENDS[copy][turn], True
            steps = []
    if steps:
        yield steps, False, False


# (steps that were made, rows of the ring): not full, full, and written over.
SIZES = [(4, 9), (8, 9), (9, 9), (11, 9), (14, 6)]


@pytest.mark.parametrize("num_steps, turns", SIZES)
@pytest.mark.parametrize("timeout_value", replays.TIMEOUT_VALUES)
def test_online_steps_follow_the_dataset_episode_by_episode(num_steps, turns, timeout_value):
    found = mixed(ring(num_steps, turns), timeout_value=timeout_value)
    oldest, known = max(0, num_steps - turns), []
    for copy in range(COPIES):
        for steps, is_terminated, is_ended in episodes_of(copy, oldest, num_steps):
            rows = 5 + turns * copy + np.array(steps) - oldest
            observation = np.asarray(found.transitions.observation)[rows]
            np.testing.assert_array_equal(observation, [[step, copy] for step in steps])
            np.testing.assert_array_equal(np.asarray(found.episode_end)[rows], rows[-1])
            if is_ended:
                known += rows.tolist()
                ends = np.array(steps) == steps[-1]
                expected = replays.returns_to_go(
                    np.asarray(found.transitions.reward)[rows],
                    ends & is_terminated,
                    ends & (not is_terminated),
                    discount=DISCOUNT,
                    timeout_value=timeout_value,
                )
                returns = np.asarray(found.return_to_go)[rows] * SCALE
                np.testing.assert_allclose(returns, expected, rtol=1e-4, atol=1e-5)
    assert int(found.fitted.num_known) == len(known)
    drawable = np.asarray(found.fitted.known)[: len(known)]
    assert sorted(drawable.tolist()) == sorted(known)
    jax.tree.map(
        lambda joined, offline: np.testing.assert_array_equal(joined[:5], offline),
        found.transitions,
        offline_replay().transitions,
    )


@pytest.mark.parametrize("fraction, num_online", [(0.0, 0), (0.25, 2), (1.0, 8)])
def test_steps_are_drawn_by_their_share(fraction, num_online):
    found = mixed(ring(8, 9), fraction=fraction)
    for draw in (found.draw_fitted, found.draw_starts):
        rows = np.asarray(draw(jax.random.key(3), 8))
        assert (rows >= 5).sum() == num_online
        assert set(rows[rows >= 5].tolist()) <= set(np.asarray(found.fitted.known)[:12].tolist())
        assert (rows[rows < 5] < 4).all()  # training steps


def test_without_an_ended_episode_the_dataset_alone_is_drawn_from():
    rows = mixed(ring(2, 9), fraction=1.0).draw_fitted(jax.random.key(0), 16)
    assert (np.asarray(rows) < 4).all()


@pytest.mark.parametrize("num_steps, turns", SIZES)
def test_drawn_transitions_are_lived_ones(num_steps, turns):
    buffer = ring(num_steps, turns)
    drawn = lived.draw(jax.random.key(1), buffer, (80, 5), next_action=True)
    oldest, seen = max(0, num_steps - turns), set()
    assert drawn.discount is None
    leaves = [np.asarray(leaf).reshape(400, -1) for leaf in drawn[:-1]]
    for observation, action, reward, terminated, following, next_action, known in zip(
        *leaves, strict=True
    ):
        turn, copy = (int(value) for value in observation)
        seen.add((turn, copy))
        assert oldest <= turn < num_steps
        assert action == 10 * copy + turn
        assert reward == np.sin(np.float32(turn + 5 * copy))
        assert terminated == ENDS[copy].get(turn, False)
        np.testing.assert_array_equal(following, [turn + 1, copy])
        has_next = turn not in ENDS[copy] and turn + 1 < num_steps
        assert known == has_next
        assert next_action == 10 * copy + turn + has_next
    assert len(seen) == COPIES * min(num_steps, turns)  # 400 draws of at most 27 steps
