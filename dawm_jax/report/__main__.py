"""Compares finished runs: Markdown, CSV and a figure from their results.json alone.

  python -m dawm_jax.report runs/* --out=report
  python -m dawm_jax.report results --out=report

Every argument is a run's folder, its results.json, or a folder of such folders. Runs of the
same method, task, settings and updates with other root seeds are seeds of one entry. Written:
report.md, report.csv (a row an entry), report.png.
"""

import pathlib

from absl import flags

from dawm_jax.runtime import cli

_OUT = flags.DEFINE_string("out", "report", "Folder to write report.md, .csv and .png to")


def main(paths: list[str]) -> None:
    """Writes the report and prints its Markdown."""
    from dawm_jax.report import runs as comparison
    from dawm_jax.report import tables as comparison_report
    from dawm_jax.types import UserError

    if not paths:
        raise UserError("no runs: expected their folders, e.g. python -m dawm_jax.report runs/*")
    out = pathlib.Path(_OUT.value).expanduser()
    print(comparison_report.write(comparison.load(paths), out))


def run() -> None:
    """Entry point of the command."""
    cli.run(main, __doc__, takes_arguments=True)


if __name__ == "__main__":
    run()
