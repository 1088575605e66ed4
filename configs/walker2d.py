"""Walker2d-v5, on the medium tier that the package's own policies collect on first use.

python -m dawm_jax.main --config=configs/walker2d.py                       the full protocol
python -m dawm_jax.main --config=configs/walker2d.py:quick                 minutes on two CPU cores
python -m dawm_jax.main --config=configs/walker2d.py:medium-replay,quick   another tier
"""

from configs import common


def get_config(variant: str = ""):
    """See common.get_config."""
    return common.get_config(variant, environment="Walker2d-v5", bundled="")
