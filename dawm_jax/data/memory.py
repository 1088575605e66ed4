"""Names of datasets that were given as arrays: nothing on this machine can be read for them."""

import pathlib

from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.data.sources import SOURCES
from dawm_jax.types import UserError

_PREFIX = "memory:"


def memory_name(name: str) -> str:
    """The name of a dataset that is given as arrays; `MemorySource` matches it."""
    return name if name.startswith(_PREFIX) else _PREFIX + name


class MemorySource:
    """Explains that the arrays must be given again."""

    name = "arrays"
    priority = 1

    def matches(self, name: str) -> bool:
        return name.startswith(_PREFIX)

    def fetch(self, name: str) -> tuple[pathlib.Path, ...]:
        raise UserError(
            f"dataset {name}: expected the arrays, which are stored nowhere; pass them as dataset= "
            "to dawm_jax.train or dawm_jax.load_run, or store them as an .npz file"
        )

    def load(self, name: str) -> OfflineDataset:
        raise UserError(f"dataset {name}: expected the arrays, which are stored nowhere")


SOURCES.register(MemorySource())
