"""Datasets that ship with the package: bundled/<task>/<dataset>."""

import pathlib

from dawm_jax.data import flat_file
from dawm_jax.data.dataset import OfflineDataset, validate
from dawm_jax.data.sources import SOURCES
from dawm_jax.types import UserError

PREFIX = "bundled/"
_ASSETS = pathlib.Path(__file__).parent / "assets"


def names() -> list[str]:
    """All bundled datasets."""
    paths = sorted(_ASSETS.glob("*.npz"))
    return [PREFIX + path.stem.replace("_", "/") for path in paths]


class BundledSource:
    """Reads flat files in the package's `data/assets` folder."""

    name = "bundled"
    priority = 0

    def matches(self, name: str) -> bool:
        return name.startswith(PREFIX)

    def fetch(self, name: str) -> tuple[pathlib.Path, ...]:
        return ()  # already a flat file: a cached copy would read no faster

    def load(self, name: str) -> OfflineDataset:
        path = _ASSETS / (name.removeprefix(PREFIX).replace("/", "_") + ".npz")
        if not path.is_file():
            raise UserError(
                f"unknown bundled dataset {name!r}: expected one of {', '.join(names())}"
            )
        return validate(flat_file.read(path, name))


SOURCES.register(BundledSource())
