"""The agents, behind one interface: init / update / act as pure functions."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from dawm_jax.agents import bc, iql, td, td3_bc
from dawm_jax.models import optim as learner
from dawm_jax.models.networks import TanhMlp
from dawm_jax.types import UserError

NAMES = ("td3_bc", "iql", "bc")


class Agent(NamedTuple):
    """An offline RL algorithm with its hyper-parameters bound.

    Attributes:
      init: key -> state.
      update: (state, batches [batches_per_update, B, ...], key) -> (state, metrics); batches
        of transitions, or of expansions where the agent was made for them.
      act: (state, standardised observation [..., S]) -> action [..., A] in [-1, 1].
      batches_per_update: how many gradient updates of the critics one `update` makes.
      reward_scale: factor between the environment's rewards and those it learns from.
    """

    init: Callable[[jax.Array], Any]
    update: Callable[..., tuple[Any, learner.Metrics]]
    act: Callable[[Any, jax.Array], jax.Array]
    batches_per_update: int
    reward_scale: float | jax.Array = 1.0


def make(
    name: str,
    config,
    *,
    state_size: int,
    action_size: int,
    total_updates: int,
    return_range: float | jax.Array,
    expansions: bool = False,
) -> Agent:
    """Binds an algorithm to its configuration.

    Args:
      name: one of NAMES.
      config: the whole run's configuration; reads `discount` and the agent's section.
      state_size: S.
      action_size: A.
      total_updates: of the whole training, for learning-rate schedules.
      return_range: max - min undiscounted episode return of the data, for IQL's rewards.
      expansions: learns from value expansions (DWM) instead of transitions.

    Raises:
      UserError: an unknown agent.
    """
    if name not in NAMES:
        raise UserError(f"config.agent: expected one of {', '.join(NAMES)}, got {name!r}")
    sizes = {"state_size": state_size, "action_size": action_size}
    if name == "bc":
        return _make_bc(config, sizes, total_updates)
    # IQL's official reward scaling: a range of 1000 between the best and worst episode.
    reward_scale = 1000.0 / return_range if name == "iql" else 1.0
    bound = {"discount": config.discount, "reward_scale": reward_scale}
    target: td.TargetFn = functools.partial(td.one_step_target, **bound)
    if expansions:
        trace = float(config[name].return_lambda)
        target = functools.partial(td.expansion_target, return_lambda=trace, **bound)
    make_one = {"td3_bc": _make_td3_bc, "iql": _make_iql}[name]
    return make_one(config, sizes, total_updates, target)._replace(reward_scale=reward_scale)


def _make_bc(config, sizes, total_updates) -> Agent:
    section = config.bc
    network = TanhMlp(tuple(section.hidden), sizes["action_size"])
    optimizer = learner.adam(section.learning_rate, schedule="constant", total_steps=total_updates)
    return Agent(
        init=functools.partial(bc.init, network=network, optimizer=optimizer, **sizes),
        update=functools.partial(bc.update, network=network, optimizer=optimizer),
        act=functools.partial(bc.act, network=network),
        batches_per_update=1,
    )


def _make_td3_bc(config, sizes, total_updates, target) -> Agent:
    section = config.td3_bc
    networks = td3_bc.make_networks(tuple(section.hidden), sizes["action_size"])
    optimizer = learner.adam(section.learning_rate, schedule="constant", total_steps=total_updates)
    optimizers = {"actor_optimizer": optimizer, "critic_optimizer": optimizer}
    return Agent(
        init=functools.partial(td3_bc.init, networks=networks, **sizes, **optimizers),
        update=functools.partial(
            td3_bc.update,
            networks=networks,
            **optimizers,
            target=target,
            tau=section.tau,
            alpha=section.alpha,
            policy_noise=section.policy_noise,
            noise_clip=section.noise_clip,
        ),
        act=functools.partial(td3_bc.act, networks=networks),
        batches_per_update=section.policy_delay,
    )


def _make_iql(config, sizes, total_updates, target) -> Agent:
    section = config.iql
    networks = iql.make_networks(tuple(section.hidden), sizes["action_size"])
    constant, decayed = (
        learner.adam(section.learning_rate, schedule=schedule, total_steps=total_updates)
        for schedule in ("constant", "cosine")
    )
    optimizers = {
        "actor_optimizer": decayed,
        "value_optimizer": constant,
        "critic_optimizer": constant,
    }
    return Agent(
        init=functools.partial(iql.init, networks=networks, **sizes, **optimizers),
        update=functools.partial(
            iql.update,
            networks=networks,
            **optimizers,
            target=target,
            tau=section.tau,
            expectile=section.expectile,
            beta=section.beta,
            max_weight=section.max_weight,
        ),
        act=functools.partial(iql.act, networks=networks),
        batches_per_update=1,
    )
