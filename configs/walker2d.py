"""Walker2d-v5, on the medium tier, which the first run collects with the package's own policies.

python -m dawm_jax.main --config=configs/walker2d.py                       the full protocol, for a GPU
python -m dawm_jax.main --config=configs/walker2d.py:quick                 minutes on two CPU cores
python -m dawm_jax.main --config=configs/walker2d.py:smoke                 seconds; the score means nothing
python -m dawm_jax.main --config=configs/walker2d.py:medium-replay,quick   another tier of the data

An installed package takes --config=walker2d:quick from any folder.
"""

import ml_collections

from dawm_jax.config import schema


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The configuration of a variant; see `schema.get_config` and docs/configuration.md."""
    return schema.get_config(variant, environment="Walker2d-v5")
