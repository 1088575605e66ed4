"""What the Python scripts of this folder share: the repository's root and a strict parser."""

import argparse
import pathlib
from typing import NoReturn

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Parser(argparse.ArgumentParser):
    """A parser that prints the module's docstring as help and every mistake as one line."""

    def __init__(self, doc: str | None) -> None:
        super().__init__(
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Exits with code 2 after one line."""
        self.exit(2, f"{self.prog}: {message}\n")

    def fail(self, message: str) -> NoReturn:
        """Exits with code 1 after one line: the command line was right, its input was not."""
        self.exit(1, f"{self.prog}: {message}\n")

    def need_folder(self, path: pathlib.Path) -> None:
        """Fails unless `path` can be made in a folder that exists or can be made."""
        if path.is_dir():
            self.fail(f"{path} is a folder: expected a file to write")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self.fail(f"{path.parent}: {error.strerror}; choose another path")

    def refuse_existing(self, path: pathlib.Path, *, overwrite: bool) -> None:
        """Fails if `path` exists and may not be replaced."""
        if path.exists() and not overwrite:
            self.fail(f"{path} exists: choose another path, or replace it with --overwrite")
