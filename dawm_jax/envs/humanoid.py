"""Humanoid: a body with two arms and two legs that runs forward; stepped by Gymnasium."""

from dawm_jax.envs.tasks import TASKS, References, Task

TASKS.register(
    Task(
        name="humanoid",
        environment="Humanoid-v5",
        # D4RL has no references. `random` is the mean return of uniformly random actions, `expert`
        # that of the dataset mujoco/humanoid/expert-v0, both in Humanoid-v5.
        references=References(random=105.71, expert=8602.9),
    )
)
