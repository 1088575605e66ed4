"""Markdown text of reports: tables, numbers, and dataset names without private folders."""

import os
import pathlib
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, without a line break at its end.

    Args:
      header: one cell per column.
      rows: the cells of each row, as many as `header` has.

    Raises:
      ValueError: a row has another number of cells than the header.
    """
    lines = [_line(header), "|" + "---|" * len(header)]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"expected {len(header)} cells in a row, got {len(row)}: {row}")
        lines.append(_line(row))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def number(value: float | None, spec: str = ".3g", *, missing: str = "-") -> str:
    """A number as text.

    Args:
      value: the number; None stands for a number that was not measured.
      spec: Python's format specification. The default writes three significant digits.
      missing: the text for None.
    """
    return missing if value is None else format(value, spec)


def shorten_path(name: str) -> str:
    """A dataset's name, or a path, without the folders of the person who ran the program.

    The rule:
      - A path inside the current folder is written relative to it. A dataset id such as
        `mujoco/hopper/medium-v0` has the form of such a path and is returned as it is.
      - Any other path inside the home folder is written relative to the home folder, with `~/`.
      - Every other path is written by its last name alone.
    """
    path = pathlib.Path(os.path.expanduser(name))
    if not path.is_absolute() and ".." not in path.parts:
        return name
    absolute = pathlib.Path(os.path.abspath(path))
    if absolute.is_relative_to(pathlib.Path.cwd()):
        return str(absolute.relative_to(pathlib.Path.cwd()))
    home = os.path.expanduser("~")  # "~" itself where no home folder is known
    if absolute.is_relative_to(home):
        return str("~" / absolute.relative_to(home))
    return absolute.name
