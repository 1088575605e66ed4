"""HalfCheetah-v5, on Minari's mujoco/halfcheetah/medium-v0 (downloaded once).

python -m dawm_jax.main --config=configs/halfcheetah.py          the full protocol, for a GPU
python -m dawm_jax.main --config=configs/halfcheetah.py:quick    minutes on two CPU cores
"""

from configs import common


def get_config(variant: str = ""):
    """See common.get_config."""
    config = common.get_config(variant)
    config.environment = "HalfCheetah-v5"
    config.dataset = "mujoco/halfcheetah/medium-v0"
    return config
