"""Where datasets come from: a source recognises the names of its datasets and reads them.

A new source is one new file in this folder that registers an object with the five members of
`Source`.
"""

import pathlib
from typing import Protocol

from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.runtime.registry import Registry


class Source(Protocol):
    """A kind of dataset: where it is found and how it is read."""

    @property
    def name(self) -> str:
        """Unique among the sources."""

    @property
    def priority(self) -> int:
        """Sources are asked in ascending order; the first one that matches a name reads it."""

    def matches(self, name: str) -> bool:
        """Whether `name` has the form of this source's names; the dataset need not exist."""

    def fetch(self, name: str) -> tuple[pathlib.Path, ...]:
        """Downloads or makes the dataset if it is absent.

        Returns:
          The files that `load` reads. A flat copy of the dataset is cached until one of the
          files changes; () if the source reads fast enough without a copy.

        Raises:
          UserError: the dataset is missing or unreachable.
        """

    def load(self, name: str) -> OfflineDataset:
        """Reads a dataset that was fetched; the result passes `dataset.validate`.

        Raises:
          UserError: the dataset is damaged or not continuous control.
        """


SOURCES: Registry[Source] = Registry(
    "dataset source",
    setting="config.dataset",
    # Policies that ship with the package can make datasets: the room of collection has a source.
    rooms=("dawm_jax.data", "dawm_jax.collect"),
)


def source_of(name: str) -> Source:
    """The source of a dataset's name; the Minari source matches all names that no other does."""
    sources = sorted(SOURCES, key=lambda source: source.priority)
    return next(source for source in sources if source.matches(name))
