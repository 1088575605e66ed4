"""Behaviour policies: their file, and sampling from them."""

import gymnasium as gym
import jax
import numpy as np
import pytest

from dawm_jax.collect import sac
from dawm_jax.collect.policies import (
    Policies,
    check_environment,
    load_policies,
    make_sampler,
    save_policies,
    shipped_policies,
)
from dawm_jax.types import UserError


def make_actor(seed=0):
    networks = sac.make_networks((8, 8), 3)
    return networks.actor.init(jax.random.key(seed), np.zeros((1, 11)))


def test_policies_are_read_back_as_rounded(tmp_path):
    actors = {"medium": make_actor(0), "expert": make_actor(1)}
    policies = Policies("Hopper-v5", actors, {"algorithm": "SAC"})
    save_policies(policies, tmp_path / "deep" / "policies.npz")
    got = load_policies(tmp_path / "deep" / "policies.npz")
    assert (got.environment, got.card) == ("Hopper-v5", {"algorithm": "SAC"})
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, np.float16(b).astype(np.float32)),
        got.actors,
        actors,
    )


def test_other_files_are_no_policies(tmp_path):
    with pytest.raises(UserError, match=r"no policies at .*expected a policies\.npz"):
        load_policies(tmp_path / "policies.npz")
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    for name in ("text", "other"):
        with pytest.raises(UserError, match="holds no behaviour policies"):
            load_policies(tmp_path / f"{name}.npz")


def test_policies_of_another_environment_are_refused():
    with pytest.raises(UserError, match="are for Hopper-v5, --env is Ant-v5"):
        check_environment(Policies("Hopper-v5", {}, {}), "Ant-v5")
    with pytest.raises(UserError, match=r"no policies are shipped for Swimmer-v5.*--train"):
        shipped_policies("Swimmer-v5")


def test_sampled_actions_are_the_policys_in_environment_units():
    space = gym.spaces.Box(np.float32([-3, 0, 1]), np.float32([1, 2, 9]))
    actor, key = make_actor(), jax.random.key(5)
    observations = np.random.default_rng(0).normal(size=(6, 11)).astype(np.float32)
    got = make_sampler(space)(actor, observations, key)
    noise = jax.random.normal(key, (6, 3))
    action, _ = sac.sample(actor, observations, noise, networks=sac.make_networks((8, 8), 3))
    expected = space.low + (np.asarray(action) + 1) / 2 * (space.high - space.low)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
