"""Hopper-v5, on bundled data of a medium policy, or on a tier that the first run collects.

python -m dawm_jax.main --config=configs/hopper.py                       the full protocol, for a GPU
python -m dawm_jax.main --config=configs/hopper.py:quick                 minutes on two CPU cores
python -m dawm_jax.main --config=configs/hopper.py:smoke                 seconds; the score means nothing
python -m dawm_jax.main --config=configs/hopper.py:medium-replay,quick   another tier of the data

An installed package takes --config=hopper:quick from any folder.
"""

import ml_collections

from dawm_jax.config import schema


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The configuration of a variant; see `schema.get_config` and docs/configuration.md."""
    return schema.get_config(variant, environment="Hopper-v5")
