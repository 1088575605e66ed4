"""Times one decision and one generated transition of every method, in one run.

Decisions: the agent of config.agent (one small policy), and every method that plans; Decision
Diffuser with its published settings and with those of DWM's comparison. Generation: every other
method; an expansion of H steps counts as H transitions. The networks have the sizes of the
configuration and random parameters. Writes speed.json and speed.md.

Examples:
  python -m dawm_jax.benchmark.latency --config=hopper
  python -m dawm_jax.benchmark.latency --config=hopper:quick --out=latency --seconds=1
"""

import json

from absl import flags
from ml_collections import config_flags

from dawm_jax.benchmark import measure
from dawm_jax.config import by_name, flag, schema
from dawm_jax.runtime import cli, paths

_CONFIG = config_flags.DEFINE_config_file("config", None, flag.HELP)
_OUT = flags.DEFINE_string("out", "latency", "Folder to write speed.json and speed.md to")
_SECONDS = flags.DEFINE_float(
    "seconds", 2.0, f"Least duration of each of three turns of a case, 0 to {measure.MAX_SECONDS:g}"
)


def main() -> None:
    """Times everything, writes the two files and prints the tables."""
    from dawm_jax.benchmark import latency_cases, tables
    from dawm_jax.benchmark.records import Latency
    from dawm_jax.runtime import provenance, sharding

    config = schema.parse(_CONFIG.value)
    out = paths.make_folder(_OUT.value, "--out")  # before the long part: it can fail
    cases = latency_cases.make_cases(config)
    least = latency_cases.TURNS * len(cases) * _SECONDS.value
    cli.log.info("%d cases, at least %.0f s", len(cases), least)
    numbers: Latency = {
        "device": sharding.describe_devices(),
        "environment": config.environment,
        "variant": config.variant,
        "cases": latency_cases.time_cases(cases, seconds=_SECONDS.value),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
    }
    text = tables.latency_markdown(numbers)
    provenance.write_atomically(out / "speed.json", json.dumps(numbers, indent=2) + "\n")
    provenance.write_atomically(out / "speed.md", text)
    print(text)


def _check() -> None:
    flag.check(_CONFIG)
    measure.check_seconds(_SECONDS.value)


def run() -> None:
    """Entry point of the command."""
    cli.run(main, __doc__, prepare=by_name.resolve, check=_check, explain=flag.explain)


if __name__ == "__main__":
    run()
