"""PointMaze: a mass that is pushed through a U-shaped maze to a goal; the reward is 1 at the goal.

The environment is one of gymnasium-robotics (extra robotics). There are no reference returns.
"""

from dawm_jax.envs.tasks import TASKS, Task

TASKS.register(
    Task(
        name="pointmaze_umaze",
        environment="gymnasium_robotics:PointMaze_UMaze-v3",
        tier="scripted",
    )
)
