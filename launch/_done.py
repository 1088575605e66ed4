"""Whether runs are done: `python _done.py FOLDER` exits with 0 if the run in FOLDER is.

It needs the standard library alone, so that scripts can ask before anything is installed.
"""

import json
import pathlib
import sys
import zipfile


def is_done(folder: pathlib.Path) -> bool:
    """Whether a run's results.json holds results and the files beside it are there."""
    try:
        results = json.loads((folder / "results.json").read_bytes())
        has_scores = all(isinstance(results[name], dict) for name in ("final", "best", "stages"))
    except (OSError, ValueError, TypeError, LookupError):
        return False
    curves = folder / "curves.png"
    has_curves = curves.is_file() and curves.stat().st_size > 0
    return has_scores and has_curves and zipfile.is_zipfile(folder / "returns.npz")


if __name__ == "__main__":
    sys.exit(not is_done(pathlib.Path(sys.argv[1])))
