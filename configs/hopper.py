"""Hopper-v5, on bundled data of a medium policy, or on a tier collected on first use.

python -m dawm_jax.main --config=configs/hopper.py                       the full protocol
python -m dawm_jax.main --config=configs/hopper.py:quick                 minutes on two CPU cores
python -m dawm_jax.main --config=configs/hopper.py:medium-replay,quick   one of D4RL's tiers
"""

from configs import common


def get_config(variant: str = ""):
    """See common.get_config."""
    return common.get_config(variant)
