"""Hopper: a leg with three joints that hops forward."""

import numpy as np

from dawm_jax.envs.tasks import TASKS, BatchPhysics, References, Task


def _healthy(qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    state = np.concatenate([qpos[:, 2:], qvel], axis=1)
    bounded = ((-100.0 < state) & (state < 100.0)).all(1)
    return bounded & (qpos[:, 1] > 0.7) & (-0.2 < qpos[:, 2]) & (qpos[:, 2] < 0.2)


TASKS.register(
    Task(
        name="hopper",
        environment="Hopper-v5",
        references=References(random=-20.272305, expert=3234.3),  # D4RL, infos.py
        batch_physics=BatchPhysics(velocity_limit=10.0, control_cost=1e-3, healthy=_healthy),
        dataset="bundled/hopper/medium-v0",
    )
)
