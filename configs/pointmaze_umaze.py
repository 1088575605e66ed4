"""PointMaze (gymnasium-robotics): a sparse reward, on data of a scripted controller.

Needs the extra robotics: pip install 'dawm_jax[robotics]'. Run with
`python -m dawm_jax.main --config=configs/pointmaze_umaze.py` and a variant behind it:
quick or smoke. The first run collects the data. docs/robotics.md has scores.
"""

import ml_collections

from dawm_jax.config import schema


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The configuration of a variant; see `schema.get_config` and docs/configuration.md."""
    return schema.get_config(variant, environment="gymnasium_robotics:PointMaze_UMaze-v3")
