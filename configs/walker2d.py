"""Walker2d-v5, on Minari's mujoco/walker2d/medium-v0 (downloaded once).

python -m dawm_jax.main --config=configs/walker2d.py          the full protocol, for a GPU
python -m dawm_jax.main --config=configs/walker2d.py:quick    minutes on two CPU cores
"""

from configs import common


def get_config(variant: str = ""):
    """See common.get_config."""
    config = common.get_config(variant)
    config.environment = "Walker2d-v5"
    config.dataset = "mujoco/walker2d/medium-v0"
    return config
