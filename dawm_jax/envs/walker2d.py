"""Walker2d: two legs with three joints each that walk forward."""

import numpy as np

from dawm_jax.envs.tasks import TASKS, BatchPhysics, References, Task


def _healthy(qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    height, angle = qpos[:, 1], qpos[:, 2]
    return (0.8 < height) & (height < 2.0) & (-1.0 < angle) & (angle < 1.0)


TASKS.register(
    Task(
        name="walker2d",
        environment="Walker2d-v5",
        references=References(random=1.629008, expert=4592.3),  # D4RL, infos.py
        batch_physics=BatchPhysics(velocity_limit=10.0, control_cost=1e-3, healthy=_healthy),
    )
)
