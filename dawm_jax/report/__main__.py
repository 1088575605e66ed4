"""Compares finished runs: Markdown, CSV and a figure, from their results.json files alone.

  python -m dawm_jax.report runs/* --out=report
  python -m dawm_jax.report results/earlier/comparison --out=report
  python -m dawm_jax.report runs/* --reference=dwm --out=report

Every argument is a run's folder, its results.json, or a folder of run folders. A folder without
results.json is skipped with a warning. Runs of the same method, task, settings and number of
updates but different root seeds are pooled, and each counts as one more world model. The command
writes into --out and replaces files of these names there: report.md, report.csv (one row per
method and task), report.png (scores), curves.png (learning curves with intervals), profiles.png
(performance profiles: the share of runs above each score), episodes.png (scores against the number
of episodes, where runs on a dataset differ in it) and, where runs were fine-tuned, fine_tuning.csv
(one row per method and task) and fine_tuning.png (learning curves over environment steps).
"""

from absl import flags

from dawm_jax.runtime import cli, paths

_OUT = flags.DEFINE_string("out", "report", "Folder to write the report's files to")
_REFERENCE = flags.DEFINE_string(
    "reference", "dawm", "The method, as named in results.json, to compare with every other method"
)


def main(folders: list[str]) -> None:
    """Writes the report and prints its Markdown."""
    from dawm_jax.report import runs, tables
    from dawm_jax.types import UserError

    if not folders:
        raise UserError("no runs: expected their folders, e.g. python -m dawm_jax.report runs/*")
    out = paths.expand(_OUT.value, "--out")
    print(tables.write(runs.load(folders), out, reference=_REFERENCE.value))


def run() -> None:
    """Entry point of the command."""
    cli.run(main, __doc__, takes_arguments=True)


if __name__ == "__main__":
    run()
