"""The speed of this package beside PyTorch's, measured side by side in one run.

  python -m dawm_jax.benchmark                                    what suits the device, 20 min
  python -m dawm_jax.benchmark --quick                            a first look, minutes
  python -m dawm_jax.benchmark --config=configs/hopper.py --config.world_model.dtype=bfloat16
  python -m dawm_jax.benchmark --growth --out=results/benchmark   how costs grow, too

PyTorch is the extra `torch`; without it only JAX is timed. Both do the same work with the same
networks, batches and precision, with the data on the device. Written to --out: benchmark.json,
table.md, ratios.png, and with --growth growth.json, growth.md, growth.png.
"""

import json
import pathlib
import sys
from typing import Any

from absl import flags

from dawm_jax.runtime import cli

_ROOT = pathlib.Path(__file__).resolve().parents[2]
# Environment files import configs.common, from wherever the program is started.
if str(_ROOT) not in sys.path:
    sys.path.append(str(_ROOT))

from ml_collections import config_flags  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Sizes and data. Default: configs/hopper.py, on a CPU its quick variant"
)
_OUT = flags.DEFINE_string("out", "benchmark", "Folder of the results")
_STAGES = flags.DEFINE_list("stages", None, "Stages to time. Default: all; none: --stages=")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each side", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 3.0, "Least time of a turn", lower_bound=0.0)
_TORCH = flags.DEFINE_list("torch", None, "Of stock, tuned, compiled. Default: all; none: --torch=")
_QUICK = flags.DEFINE_bool("quick", False, "Three short turns, PyTorch not compiled, no memory")
_MEMORY = flags.DEFINE_bool("memory", True, "Measure peak memory, in processes of their own")
_START = flags.DEFINE_bool("start", True, "Time the main program's first step, cold and warm")
_GROWTH = flags.DEFINE_bool("growth", False, "Also time how costs grow with each size")
_AXES = flags.DEFINE_list("axes", None, "Sizes to grow. Default: all")


def main() -> None:
    """Times everything and writes the results."""
    from dawm_jax.benchmark import growth, jax_side, measure, suite, tables
    from dawm_jax.training import results

    config, config_flags_given = _config()
    stages = suite.check_names("stages", _STAGES.value, jax_side.STAGES)
    sides = suite.check_names("torch", _TORCH.value, suite.TORCH)
    axes = suite.check_names("axes", _AXES.value, growth.AXES)
    if _QUICK.value and _TORCH.value is None:
        sides.remove("compiled")
    rounds, seconds = (3, 0.5) if _QUICK.value else (_ROUNDS.value, _SECONDS.value)
    out = pathlib.Path(_OUT.value).expanduser()
    if stages:
        numbers = suite.run(
            config,
            stages=stages,
            rounds=rounds,
            seconds=seconds,
            sides=sides,
            memory=_MEMORY.value and not _QUICK.value,
            save=lambda numbers: suite.write(numbers, out),
        )
        if _START.value and not _QUICK.value:
            numbers["start"] = measure.seconds_to_first_step(*config_flags_given)
            suite.write(numbers, out)
        print(tables.markdown(numbers))
    if _GROWTH.value:
        numbers = growth.run(config, axes=axes, rounds=rounds, seconds=seconds)
        text = tables.growth_markdown(numbers)
        out.mkdir(parents=True, exist_ok=True)
        results.write_atomically(out / "growth.json", json.dumps(numbers, indent=1) + "\n")
        results.write_atomically(out / "growth.md", text)
        tables.plot_growth(numbers, out / "growth.png")
        print(text)


def _config() -> tuple[Any, list[str]]:
    """The configuration, and the flags that name it to the main program."""
    if _CONFIG.value is not None:
        given = [word for word in sys.argv[1:] if word.lstrip("-").startswith("config")]
        return _CONFIG.value, given
    import jax

    from configs import hopper

    variant = "quick" if jax.default_backend() == "cpu" else ""
    return hopper.get_config(variant), [f"--config=configs/hopper.py:{variant}"]


def run() -> None:
    """Entry point of the command."""
    cli.run(main, __doc__)


if __name__ == "__main__":
    run()
