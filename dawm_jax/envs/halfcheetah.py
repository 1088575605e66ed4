"""HalfCheetah: two legs with three joints each that run forward; episodes never terminate."""

import numpy as np

from dawm_jax.envs.tasks import TASKS, BatchPhysics, References, Task

TASKS.register(
    Task(
        name="halfcheetah",
        environment="HalfCheetah-v5",
        references=References(random=-280.178953, expert=12135.0),  # D4RL, infos.py
        batch_physics=BatchPhysics(velocity_limit=np.inf, control_cost=0.1, healthy=None),
    )
)
