"""Files that appear whole or not at all, and facts about the host and the source."""

import subprocess
import threading

import pytest

from dawm_jax.runtime import provenance


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "results.json"
    for text in ("first", "second"):
        provenance.write_atomically(path, text)
        assert path.read_text() == text
    assert [each.name for each in tmp_path.iterdir()] == ["results.json"]


def test_permissions_are_those_of_other_new_files(tmp_path):
    provenance.write_atomically(tmp_path / "atomic", "text")
    (tmp_path / "plain").write_text("text")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), provenance.whole_file(path) as part:
        part.write_text("half of the new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["results.json"]


def test_the_commit_is_that_of_the_source_alone(tmp_path, monkeypatch):
    """A repository around an installed package does not track the package's files."""

    def git(*arguments):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)

    source = tmp_path / "provenance.py"
    source.touch()
    monkeypatch.setattr(provenance, "__file__", str(source))
    identity = ("-c", "user.name=a", "-c", "user.email=b")
    git("init", "-q")
    git(*identity, "commit", "-q", "--allow-empty", "-m", "first")
    assert provenance.commit() is None
    git("add", "provenance.py")
    git(*identity, "commit", "-q", "-m", "second")
    assert len(provenance.commit()) >= 4
    source.write_text("changed")
    assert provenance.commit().endswith("+")


@pytest.mark.parametrize("link", ["results.tmp", "results.json.tmp", "results.json"])
def test_links_are_not_written_through(tmp_path, link):
    """Neither one at a name that a temporary file might have, nor one at the path itself."""
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / link).symlink_to(victim)
    provenance.write_atomically(tmp_path / "results.json", "new")
    assert victim.read_text() == "untouched"
    assert (tmp_path / "results.json").read_text() == "new"
    assert not (tmp_path / "results.json").is_symlink()


def test_two_writers_do_not_share_a_temporary_file(tmp_path):
    """Both write at once; the file is the one or the other, whole."""
    path, barrier, parts = tmp_path / "file", threading.Barrier(2), []

    def write(letter):
        with provenance.whole_file(path) as part:
            barrier.wait()
            part.write_text(letter * 100_000)
            parts.append(part)
            barrier.wait()

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(parts)) == 2
    assert path.read_text() in ("a" * 100_000, "b" * 100_000)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        provenance.write_atomically(tmp_path / "missing" / "file", "text")


def test_facts():
    assert provenance.num_cores() >= 1
    assert isinstance(provenance.cpu_model(), str)
    versions = provenance.versions()
    assert {"dawm_jax", "jax", "gymnasium", "mujoco"} <= versions.keys()
    assert versions["jax"] != "not installed"
