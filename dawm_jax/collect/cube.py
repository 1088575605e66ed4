"""A controller of OGBench's single cube: the oracle that ships with the package ogbench."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dawm_jax.collect.controllers import CONTROLLERS, ControllerSpec


class CubeController:
    """OGBench's Markov oracle, told the goal of the single task.

    Args:
      env: a single task of cube-single, after its reset.
    """

    def __init__(self, env: Any):
        # ogbench is an optional extra; its import takes seconds.
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle

        task = env.unwrapped.cur_task_info
        self._goal = {
            "privileged/target_block": 0,
            "privileged/target_block_pos": np.asarray(task["goal_xyzs"])[0],
            "privileged/target_block_yaw": np.zeros(1),
        }
        self._oracle = CubeMarkovOracle(env=env)
        self._oracle.reset(None, None)

    def act(self, info: Mapping[str, Any]) -> np.ndarray:
        """See `Controller`."""
        return np.asarray(self._oracle.select_action(None, {**info, **self._goal}))


CONTROLLERS.register(ControllerSpec(name="cube-single-singletask", make=CubeController))
