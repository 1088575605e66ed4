"""Ant: four legs with two joints each that run forward; stepped by Gymnasium."""

from dawm_jax.envs.tasks import TASKS, References, Task

TASKS.register(
    Task(
        name="ant",
        environment="Ant-v5",
        references=References(random=-325.6, expert=3879.7),  # D4RL, infos.py
        # 13 positions and 14 velocities; the 78 other columns are contact forces.
        state_columns=27,
    )
)
