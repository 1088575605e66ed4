"""Humanoid: a body with two arms and two legs that runs forward; stepped by Gymnasium."""

from dawm_jax.envs.tasks import TASKS, References, Task

TASKS.register(
    Task(
        name="humanoid",
        environment="Humanoid-v5",
        # D4RL has no references. `random` is the mean return of uniformly random actions, `expert`
        # that of the dataset mujoco/humanoid/expert-v0, both in Humanoid-v5.
        references=References(random=105.71, expert=8602.9),
        # 22 positions and 23 velocities; the 303 other columns are inertias, velocities of the
        # bodies, forces of the actuators and contact forces.
        state_columns=45,
    )
)
