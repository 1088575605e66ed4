"""The progress line of a terminal, which rewrites itself and which other text must not touch."""

import shutil
import sys

_open = False


def rewrite(text: str) -> None:
    """Shows `text` in place of the progress line."""
    global _open
    # A line that wraps could not be erased.
    text = text[: shutil.get_terminal_size().columns - 1]
    sys.stderr.write(f"\r\x1b[2K{text}")
    sys.stderr.flush()
    _open = True


def end_line() -> None:
    """Moves to a fresh line, if a progress line stands there."""
    global _open
    if _open:
        sys.stderr.write("\n")
        sys.stderr.flush()
    _open = False


def erase() -> None:
    """Erases the progress line, if there is one; the text that follows takes its place."""
    global _open
    if _open:
        sys.stderr.write("\r\x1b[2K")
    _open = False
