"""The judges of the fault injection see what is wrong."""

import json
import random
import sys

import numpy as np
import pytest
from faults import damage, harness
from faults.commands import Ended
from PIL import Image

LINE = "dawm_jax: x: expected y\n"


@pytest.mark.parametrize(
    ("code", "output", "wrong"),
    [
        (1, LINE, None),
        (1, "00:00:00  workdir: run\n" + LINE, None),
        (0, LINE, "exit code 0"),
        (-9, "", "exit code -9"),
        (1, "", "0 lines"),
        (1, LINE + LINE, "2 lines"),
        (1, "Traceback (most recent call last):\n" + LINE, "2 lines"),
        (1, "ValueError: x\n", "1 lines"),
        (1, "dawm_jax: unexpected error in a.py:1: x\n", "unexpected"),
    ],
)
def test_a_refusal_is_one_line(code, output, wrong):
    found = harness.refusal(Ended(code, output, 1.0, ()))
    assert (found is None) if wrong is None else found.startswith(wrong)


@pytest.mark.parametrize("how", damage.DAMAGES)
@pytest.mark.parametrize("content", [b"", b"0123456789" * 10])
def test_damage_changes_a_file(tmp_path, how, content):
    path = tmp_path / "file"
    for seed in range(20):
        path.write_bytes(content)
        damage.damage(path, how, random.Random(seed))
        assert not path.exists() if how == "deleted" else path.read_bytes() != content


def test_times_do_not_count(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"stage": "a", "kind": "train", "step": step, "loss": 1.0, "seconds": time, "crc": time}
        for step, time in ((2, 1), (1, 2))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected = [{"stage": "a", "kind": "train", "step": step, "loss": 1.0} for step in (1, 2)]
    assert harness.read_lines(path) == expected


def test_archives_and_pictures_are_read_to_their_end(tmp_path):
    archive, picture = tmp_path / "a.npz", tmp_path / "a.png"
    np.savez(archive, a=np.arange(100))
    Image.effect_noise((20, 20), 50).save(picture)
    assert damage.is_whole_archive(archive) and damage.is_whole_picture(picture)
    for path in (archive, picture):
        path.write_bytes(path.read_bytes()[:-20])
    assert not damage.is_whole_archive(archive) and not damage.is_whole_picture(picture)
    assert not damage.is_whole_archive(tmp_path / "absent")


def test_every_kind_of_file_is_damaged_in_some_state():
    _, places = harness.KINDS["damaged file"]
    assert {place.split(": ")[1] for place in places} == set(damage.FILES)


def test_passed_and_failed_tests_are_counted(tmp_path):
    path = tmp_path / "some_test.py"
    path.write_text(
        "import pytest\n@pytest.mark.parametrize('x', range(5))\ndef test_x(x):\n    assert x < 3\n"
    )
    assert harness.count_suite(str(path)) == {"tried": 5, "held": 3}
    path.write_text("import nothing_of_this_name\n")
    assert harness.count_suite(str(path)) == {"tried": 1, "held": 0}
    assert "nothing_of_this_name" not in sys.modules
