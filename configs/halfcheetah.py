"""HalfCheetah-v5, on the medium tier that the package's own policies collect on first use.

python -m dawm_jax.main --config=configs/halfcheetah.py                      the full protocol
python -m dawm_jax.main --config=configs/halfcheetah.py:quick                minutes on two cores
python -m dawm_jax.main --config=configs/halfcheetah.py:medium-replay,quick  another tier
"""

from configs import common


def get_config(variant: str = ""):
    """See common.get_config."""
    return common.get_config(variant, environment="HalfCheetah-v5", bundled="")
