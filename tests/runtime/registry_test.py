"""Plug-ins: a file in a room is found by itself; names are unique."""

import sys
from typing import NamedTuple

import pytest

from dawm_jax.runtime.registry import Registry
from dawm_jax.types import UserError


class Entry(NamedTuple):
    name: str
    number: int = 0


def make_registry(*rooms):
    return Registry("animal", setting="config.animal", rooms=rooms)


@pytest.fixture(name="room")
def _room(tmp_path, monkeypatch):
    """A package whose modules register into room.REGISTRY."""
    folder = tmp_path / "a_room_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from dawm_jax.runtime.registry import Registry\n"
        "REGISTRY = Registry('animal', setting='config.animal', rooms=('a_room_of_a_test',))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == folder.name]:
        del sys.modules[name]


def plug_in(*names, before=""):
    lines = [
        "from typing import NamedTuple",
        "from a_room_of_a_test import REGISTRY",
        before,
        "class Entry(NamedTuple):",
        "    name: str",
        *[f"REGISTRY.register(Entry({name!r}))" for name in names],
    ]
    return "\n".join(lines) + "\n"


def load():
    return __import__("a_room_of_a_test").REGISTRY


def test_entries_are_found_by_name_and_sorted():
    registry = make_registry()
    cat, ant = Entry("cat", 1), Entry("ant", 2)
    assert registry.register(cat) is cat
    registry.register(ant)
    assert registry.get("cat") is cat
    assert registry.names() == ["ant", "cat"]
    assert list(registry) == [ant, cat]
    assert "cat" in registry and "cow" not in registry and None not in registry


def test_an_unknown_name_lists_the_known_ones():
    registry = make_registry()
    for name in ("cat", "ant"):
        registry.register(Entry(name))
    with pytest.raises(UserError, match=r"^config\.animal: expected one of ant, cat, got 'cow'$"):
        registry.get("cow")


def test_two_entries_of_one_name_are_refused():
    registry = make_registry()
    first = registry.register(Entry("cat", 1))
    with pytest.raises(UserError, match="two entries are called animal 'cat'; rename one"):
        registry.register(Entry("cat", 2))
    assert registry.get("cat") is first
    assert registry.register(first) is first  # the same once more changes nothing


def test_a_removed_name_is_free():
    registry = make_registry()
    registry.register(Entry("cat", 1))
    registry.unregister("cat")
    assert "cat" not in registry
    assert registry.register(Entry("cat", 2)).number == 2


def test_files_in_a_room_are_found(room):
    (room / "cats.py").write_text(plug_in("cat", "lion"))
    (room / "ants.py").write_text(plug_in("ant"))
    (room / "helpers.py").write_text("")
    (room / "__main__.py").write_text("raise SystemExit('a command is not imported')\n")
    registry = load()
    assert "a_room_of_a_test.cats" not in sys.modules  # nothing is imported before it is needed
    assert registry.names() == ["ant", "cat", "lion"]


@pytest.mark.parametrize(
    "ask",
    [
        lambda registry: registry.get("cat"),
        lambda registry: "cat" in registry,
        lambda registry: next(iter(registry)),
        lambda registry: registry.names(),
    ],
)
def test_every_question_finds_the_files(room, ask):
    (room / "cats.py").write_text(plug_in("cat"))
    assert ask(load())


def test_a_file_may_ask_the_registry_while_it_is_imported(room):
    (room / "ants.py").write_text(plug_in("ant"))
    (room / "bees.py").write_text(plug_in("bee", before="assert 'ant' in REGISTRY"))
    assert load().names() == ["ant", "bee"]


def test_entries_from_outside_join_those_of_the_room(room):
    (room / "cats.py").write_text(plug_in("cat"))
    registry = load()
    registry.register(Entry("zebra"))
    assert registry.names() == ["cat", "zebra"]


def test_a_name_of_the_room_is_taken(room):
    """Whichever is registered first."""
    (room / "cats.py").write_text(plug_in("cat"))
    registry = load()
    registry.register(Entry("cat"))
    with pytest.raises(UserError, match="two entries are called animal 'cat'"):
        registry.names()


def test_a_broken_file_is_an_error_each_time(room):
    """The second question must not answer with half of the entries."""
    (room / "ants.py").write_text(plug_in("ant"))
    (room / "broken.py").write_text("raise RuntimeError('broken')\n")
    (room / "cats.py").write_text(plug_in("cat"))
    registry = load()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            registry.names()
