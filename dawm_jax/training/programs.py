"""The jitted programs of a run, as training runs them and the benchmark times them.

Everything that changes from call to call is an argument, datasets and frozen models too: a
closure would copy them into the program. The state, the first argument, is donated.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from dawm_jax.methods.registry import Assembly, real_fraction
from dawm_jax.models import optim as learner
from dawm_jax.models.factories import Trainable
from dawm_jax.runtime.parallel import Placement
from dawm_jax.training import fused


def model_steps(model: Trainable, placement: Placement, *, num_steps: int) -> Callable[..., Any]:
    """Consecutive updates of a model: (state, key, replay, first_step) -> (state, metrics).

    Step i draws from fold_in(key, i).
    """

    def program(state, key, replay, first_step):
        def one_step(state, index):
            key_step = jax.random.fold_in(key, index)
            return model.step(state, key_step, replay, placement.shard, placement.mean)

        return learner.scan_steps(one_step, state, first_step, num_steps)

    return placement.compile_training(program)


def agent_rounds(
    config: Any, parts: Assembly, placement: Placement, *, num_updates: int
) -> Callable[..., Any]:
    """The fused program of all seeds, see `fused.train_rounds`.

    (runs [seeds], keys [seeds], first_round, models, replay) -> (runs, metrics [seeds]).
    """
    training, updates_per_round = config.training, config.rollout.updates_per_round
    rounds = functools.partial(
        fused.train_rounds,
        agent=parts.agent,
        num_rounds=num_updates // updates_per_round,
        updates_per_round=updates_per_round,
        batch_size=training.batch_size,
        real_fraction=real_fraction(config),
        **_generation(config, parts, placement),
    )
    return placement.map_seeds(rounds)


def prefill(config: Any, parts: Assembly, placement: Placement) -> Callable[..., Any]:
    """What fills all seeds' buffers: (buffers, keys, models, replay) -> buffers."""
    roll = config.rollout
    rounds = -(-roll.prefill_transitions // (roll.windows_per_round * config.horizon))
    generation = _generation(config, parts, placement)
    return placement.map_seeds(functools.partial(fused.prefill, num_rounds=rounds, **generation))


def init_agents(parts: Assembly) -> Callable[[jax.Array], Any]:
    """What makes all seeds' agents: keys [seeds] -> agents.

    One seed after the other: batched QR factorisations, of orthogonal kernels, that run
    beside each other can wait for each other's threads for ever on a CPU.
    """
    return jax.jit(functools.partial(jax.lax.map, parts.agent.init))


def _generation(config, parts: Assembly, placement: Placement) -> dict[str, Any]:
    synthetic = config.training.real_fraction < 1.0
    return {
        "imagine": parts.imagine if synthetic else None,
        "num_windows": parts.num_windows,
        "shard": placement.shard_windows,
    }
