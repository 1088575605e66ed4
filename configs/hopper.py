"""Hopper-v5, on bundled data of a medium policy.

python -m dawm_jax.main --config=configs/hopper.py          the full protocol, for a GPU
python -m dawm_jax.main --config=configs/hopper.py:quick    minutes on two CPU cores
"""

from configs import common


def get_config(variant: str = ""):
    """See common.get_config."""
    return common.get_config(variant)
