"""How long decisions and synthetic transitions take, for each method, in one run.

  python -m dawm_jax.benchmark.latency --config=configs/hopper.py
  python -m dawm_jax.benchmark.latency --config=configs/hopper.py:quick --out=speed

Decisions: DAWM's agent (one small policy) and Decision Diffuser, as published and with DWM's
settings. Generation: every method that makes transitions, and DWM's value expansions. The
networks have the sizes of the configuration and random parameters. Written: speed.json, speed.md.
"""

import json
import pathlib
import sys

from absl import flags

from dawm_jax.runtime import cli

_ROOT = pathlib.Path(__file__).resolve().parents[2]
# Environment files import configs.common, from wherever the program is started.
if str(_ROOT) not in sys.path:
    sys.path.append(str(_ROOT))

from ml_collections import config_flags  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "A configuration file, with a variant")
_OUT = flags.DEFINE_string("out", "inference_speed", "Folder to write speed.json and speed.md to")
_SECONDS = flags.DEFINE_float("seconds", 2.0, "Least time of each of three turns of a case")


def main() -> None:
    """Times everything and writes the two files."""
    from dawm_jax.benchmark import latency_cases as speed
    from dawm_jax.runtime import parallel
    from dawm_jax.training import results

    config = _CONFIG.value
    numbers = {
        "device": parallel.describe_devices(),
        "environment": config.environment,
        "variant": config.variant,
        "cases": speed.time_cases(speed.make_cases(config), seconds=_SECONDS.value),
        "versions": results.versions(),
        "commit": results.commit(),
    }
    out = pathlib.Path(_OUT.value).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    text = speed.markdown(numbers)
    results.write_atomically(out / "speed.json", json.dumps(numbers, indent=2) + "\n")
    results.write_atomically(out / "speed.md", text)
    print(text)


def _check_config() -> None:
    if _CONFIG.value is None:
        raise ValueError("--config is missing: expected e.g. --config=configs/hopper.py:quick")


def run() -> None:
    """Entry point of the command."""
    cli.run(main, __doc__, check=_check_config)


if __name__ == "__main__":
    run()
