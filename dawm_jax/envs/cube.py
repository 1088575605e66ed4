"""A robot arm that moves a cube to a place: OGBench's default single task of cube-single.

The environment is one of ogbench (extra robotics). Each step costs 1 until the cube is in place,
which ends the episode. There are no reference returns.
"""

from dawm_jax.envs.tasks import TASKS, Task

TASKS.register(
    Task(
        name="cube-single-singletask",
        environment="ogbench:cube-single-singletask-v0",
        tier="scripted",
    )
)
