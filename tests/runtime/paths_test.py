"""Paths that a user names, and a cache that a home folder may lack."""

import logging
import os
import pathlib
import pwd

import pytest

from dawm_jax.runtime import paths
from dawm_jax.types import UserError


@pytest.fixture(name="no_home")
def _no_home(monkeypatch):
    """A user without HOME and without an entry in the user database."""

    def missing(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", missing)


@pytest.fixture(autouse=True)
def _warn_anew():
    paths._warn.cache_clear()


def test_expand(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert paths.expand("~/runs", "--workdir") == pathlib.Path("/home/me/runs")
    assert paths.expand("runs", "--workdir") == pathlib.Path("runs")


def test_a_home_that_is_not_known(no_home):
    for name in ("~/runs", "~no-such-user/runs"):
        with pytest.raises(UserError, match=r"--out: the home folder in ~.* set HOME") as error:
            paths.expand(name, "--out")
        assert "\n" not in str(error.value)
    assert paths.expand("runs/~", "--out") == pathlib.Path("runs/~")


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_path(name):
    with pytest.raises(UserError, match="--workdir: expected a path, got '"):
        paths.expand(name, "--workdir")


def test_make_folder(tmp_path):
    assert paths.make_folder(str(tmp_path / "a" / "b"), "--out").is_dir()
    assert paths.make_folder(str(tmp_path / "a" / "b"), "--out").is_dir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "file/folder", "link"):
        with pytest.raises(UserError, match=r"--out .*: expected a folder that can be written \("):
            paths.make_folder(str(tmp_path / name), "--out")


def test_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert paths.cache("datasets") == tmp_path / "dawm_jax" / "datasets"
    assert (tmp_path / "dawm_jax" / "datasets").is_dir()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert paths.cache("compiled") == tmp_path / "home" / ".cache" / "dawm_jax" / "compiled"


def test_without_a_home_there_is_no_cache_and_one_warning(no_home, caplog):
    caplog.set_level(logging.WARNING)
    assert paths.cache("compiled") is None and paths.cache("datasets") is None
    (record,) = caplog.records
    assert "home folder is not known" in record.getMessage()
    assert "set XDG_CACHE_HOME" in record.getMessage()


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert paths.cache("compiled") is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert paths.cache("compiled") is None
    reasons = [record.getMessage() for record in caplog.records]
    assert "Not a directory" in reasons[0] and "Permission denied" in reasons[1]
