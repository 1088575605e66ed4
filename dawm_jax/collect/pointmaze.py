"""A controller of PointMaze: the shortest way through the cells of the maze to the goal."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from dawm_jax.collect.controllers import CONTROLLERS, ControllerSpec

# Actions push a mass: the action is gain * (target - position) - damping * velocity.
_GAIN, _DAMPING = 10.0, 1.0
_WALL = 1
# A waypoint is reached within this distance; a cell is 1 wide.
_REACHED = 0.3

_Cell = tuple[int, int]


class WaypointController:
    """Steers from cell to cell on a shortest way, and then to the goal.

    Args:
      env: PointMaze of gymnasium-robotics, after its reset.
    """

    def __init__(self, env: Any):
        self._env = env.unwrapped
        maze = self._env.maze
        position, goal = self._position(), self._env.goal
        cells = shortest_way(maze.maze_map, _cell(maze, position), _cell(maze, goal))
        centres = [np.asarray(maze.cell_rowcol_to_xy(np.array(cell))) for cell in cells[1:-1]]
        self._waypoints = deque([*centres, np.asarray(goal)])

    def act(self, info: Mapping[str, Any]) -> np.ndarray:
        """See `Controller`."""
        del info
        position, velocity = self._position(), self._env.data.qvel[:2]
        last = len(self._waypoints) == 1
        if not last and np.linalg.norm(self._waypoints[0] - position) < _REACHED:
            self._waypoints.popleft()
        action = _GAIN * (self._waypoints[0] - position) - _DAMPING * velocity
        return np.clip(action, -1.0, 1.0)

    def _position(self) -> np.ndarray:
        return np.array(self._env.data.qpos[:2])


def _cell(maze: Any, position: np.ndarray) -> _Cell:
    row, column = maze.cell_xy_to_rowcol(position)
    return int(row), int(column)


def shortest_way(cells: list[list[Any]], start: _Cell, goal: _Cell) -> list[_Cell]:
    """Cells from `start` to `goal`, both included, each beside the one before.

    Args:
      cells: rows of the maze; 1 is a wall.
      start: row and column.
      goal: row and column.

    Raises:
      ValueError: no open cells connect start and goal.
    """
    before: dict[_Cell, _Cell | None] = {start: None}
    queue = deque([start])
    while queue:
        row, column = cell = queue.popleft()
        if cell == goal:
            way: list[_Cell] = []
            step: _Cell | None = cell
            while step is not None:
                way.append(step)
                step = before[step]
            return way[::-1]
        for beside in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            inside = 0 <= beside[0] < len(cells) and 0 <= beside[1] < len(cells[0])
            if inside and cells[beside[0]][beside[1]] != _WALL and beside not in before:
                before[beside] = cell
                queue.append(beside)
    raise ValueError(f"no way from cell {start} to cell {goal}")


CONTROLLERS.register(ControllerSpec(name="pointmaze_umaze", make=WaypointController))
