"""Damage to files: flipped bits, another digit, a cut, no file, other bytes."""

import hashlib
import pathlib
import random
import zipfile

from PIL import Image

DAMAGES = ("flipped bits", "another digit", "cut", "deleted", "other bytes")
_DIGITS = b"0123456789"
_MOST_BITS = 8
_MOST_BYTES = 4_096

# The kinds of files of a run's folder, by patterns below it.
FILES = {
    "checkpoint arrays": ("checkpoints/*/*/default/**/d/*",),
    "checkpoint metadata": (
        "checkpoints/*/*/_CHECKPOINT_METADATA",
        "checkpoints/*/*/commit_success.txt",
        "checkpoints/*/*/default/_*",
        "checkpoints/*/*/default/manifest.ocdbt",
        "checkpoints/*/*/default/*/manifest.ocdbt",
        "checkpoints/*/*/default/array_metadatas/*",
    ),
    "checkpoint digests": ("checkpoints/*/*/digests.json",),
    "config.json": ("config.json",),
    "dataset.json": ("dataset.json",),
    "metrics.jsonl": ("metrics.jsonl",),
    "results.json": ("results.json",),
    "returns.npz": ("returns.npz",),
    "curves.png": ("curves.png",),
    ".lock": (".lock",),
}


def choose(run: pathlib.Path, kind: str, rng: random.Random) -> pathlib.Path | None:
    """A random file of a kind of `FILES`; None if the run has none."""
    found = sorted(path for pattern in FILES[kind] for path in run.glob(pattern) if path.is_file())
    return rng.choice(found) if found else None


def damage(path: pathlib.Path, how: str, rng: random.Random) -> None:
    """Damages a file; one that has nothing of the kind, as an empty one, gets other bytes."""
    content = bytearray(path.read_bytes())
    digits = [index for index, byte in enumerate(content) if byte in _DIGITS]
    if how == "deleted":
        path.unlink()
    elif how == "cut" and content:
        path.write_bytes(content[: rng.randrange(len(content))])
    elif how == "another digit" and digits:
        index = rng.choice(digits)  # JSON stays JSON
        content[index] = rng.choice(_DIGITS.replace(content[index : index + 1], b""))
        path.write_bytes(content)
    elif how == "flipped bits" and content:
        for bit in rng.sample(range(8 * len(content)), rng.randint(1, _MOST_BITS)):
            content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
    else:
        path.write_bytes(rng.randbytes(rng.randint(1, _MOST_BYTES)))


def digests(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def is_whole_archive(path: pathlib.Path) -> bool:
    """Whether an .npz file can be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def is_whole_picture(path: pathlib.Path) -> bool:
    """Whether a picture can be read, and its checksums are right."""
    try:
        with Image.open(path) as picture:
            picture.verify()
        return True
    except (OSError, SyntaxError, ValueError):
        return False
