"""Plug-ins by name: agents, denoisers, methods, dataset sources and tasks are found through these.

A registry imports every module of its rooms when it is first asked, so that a new file in a
room is found without being named anywhere else. Code outside the package registers its own
entries by calling `register` before the program starts, for instance in a configuration file.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from dawm_jax.types import UserError


class Named(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str:
        """Unique within its registry; what a configuration says."""


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """Named entries of one kind, in the order of their names.

    Args:
      kind: what an entry is, for messages: "agent".
      setting: the setting that chooses one, for messages: "config.agent".
      rooms: packages whose modules register the entries that ship with this one.
    """

    def __init__(self, kind: str, *, setting: str, rooms: tuple[str, ...]):
        self._kind, self._setting, self._rooms = kind, setting, rooms
        self._entries: dict[str, T] = {}
        self._discovered = False

    def register(self, entry: T) -> T:
        """Adds an entry and returns it.

        Raises:
          UserError: another entry has its name.
        """
        if self._entries.setdefault(entry.name, entry) is not entry:
            raise UserError(f"two entries are called {self._kind} {entry.name!r}; rename one")
        return entry

    def unregister(self, name: str) -> None:
        """Removes an entry; tests undo their registrations with it."""
        del self._entries[name]

    def get(self, name: str, *, setting: str = "") -> T:
        """The entry called `name`.

        Args:
          name: of the entry.
          setting: the setting that says `name`, for messages; "" is the registry's own.

        Raises:
          UserError: there is none.
        """
        self._discover()
        if name not in self._entries:
            raise UserError(
                f"{setting or self._setting}: expected one of {', '.join(self.names())}, "
                f"got {name!r}"
            )
        return self._entries[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        self._discover()
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._entries

    def __iter__(self) -> Iterator[T]:
        return (self._entries[name] for name in self.names())

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True  # before the imports: a module of a room may ask this registry
        try:
            for room in self._rooms:
                for module in pkgutil.iter_modules(importlib.import_module(room).__path__):
                    if module.name != "__main__":
                        importlib.import_module(f"{room}.{module.name}")
        except BaseException:
            self._discovered = False  # the next question fails too: entries are missing
            raise
