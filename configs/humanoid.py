"""Humanoid-v5, on the medium tier, which the first run collects with the package's policies.

Run with `python -m dawm_jax.main --config=configs/humanoid.py` and a variant behind it:

  (none)                 full size, for a GPU
  :quick                 minutes on two CPU cores
  :smoke                 less than a minute; the score means nothing
  :medium-replay,quick   another tier of the data

An installed package takes --config=humanoid:quick from any folder. docs/many-dimensions.md has
scores.
"""

import ml_collections

from dawm_jax.config import schema


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The configuration of a variant; see `schema.get_config` and docs/configuration.md."""
    return schema.get_config(variant, environment="Humanoid-v5")
