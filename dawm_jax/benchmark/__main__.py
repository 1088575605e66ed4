"""Times every stage of DAWM beside the same method in PyTorch, in one run.

Both sides have the same networks, batches and precision, and their data on the device. PyTorch
is the extra `torch`; without it only JAX is timed. Writes benchmark.json, table.md and
ratios.png, with --growth also growth.json, growth.md and growth.png. Takes 20 minutes on two
CPU cores.

Examples:
  python -m dawm_jax.benchmark
  python -m dawm_jax.benchmark --quick                               a first look, minutes
  python -m dawm_jax.benchmark --config=hopper --config.world_model.dtype=bfloat16
  python -m dawm_jax.benchmark --growth --out=results/benchmark      growing sizes too
  python -m dawm_jax.benchmark --growth --stages=                    growing sizes alone
"""

import json
import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from dawm_jax.benchmark import measure
from dawm_jax.config import by_name, flag, schema
from dawm_jax.config.schema import Config
from dawm_jax.runtime import cli, paths

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, f"{flag.HELP}. Default: hopper, on a CPU hopper:quick"
)
_OUT = flags.DEFINE_string("out", "benchmark", "Folder of the results")
_STAGES = flags.DEFINE_list("stages", None, "Stages to time. Default: all; none: --stages=")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each side", lower_bound=1, upper_bound=1_000)
_SECONDS = flags.DEFINE_float(
    "seconds", 3.0, f"Least duration of a turn, 0 to {measure.MAX_SECONDS:g}"
)
_TORCH = flags.DEFINE_list("torch", None, "Of stock, tuned, compiled. Default: all; none: --torch=")
_QUICK = flags.DEFINE_bool(
    "quick", False, "Three turns of half a second; without compiled PyTorch, memory and start"
)
_MEMORY = flags.DEFINE_bool("memory", True, "Measure peak memory, in processes of their own")
_START = flags.DEFINE_bool("start", True, "Time the main program's first step, cold and warm")
_GROWTH = flags.DEFINE_bool("growth", False, "Also time growing sizes")
_AXES = flags.DEFINE_list("axes", None, "Sizes to grow. Default: all")


def main() -> None:
    """Times everything and writes the results."""
    from dawm_jax.benchmark import growth

    config, config_flags_given = _config()
    rounds, seconds = (3, 0.5) if _QUICK.value else (_ROUNDS.value, _SECONDS.value)
    out = paths.make_folder(_OUT.value, "--out")  # before the long part: it can fail
    if _GROWTH.value:
        growth.check(config, _axes())
    if _stages():
        _time_stages(config, config_flags_given, rounds, seconds, out)
    if _GROWTH.value:
        _time_growth(config, rounds, seconds, out)


def _time_stages(
    config: Config,
    config_flags_given: Sequence[str],
    rounds: int,
    seconds: float,
    out: pathlib.Path,
) -> None:
    from dawm_jax.benchmark import suite, tables

    numbers = suite.run(
        config,
        stages=_stages(),
        rounds=rounds,
        seconds=seconds,
        sides=_sides(),
        memory=_MEMORY.value and not _QUICK.value,
        save=lambda numbers: suite.write(numbers, out),
    )
    if _START.value and not _QUICK.value:
        numbers["start"] = measure.seconds_to_first_step(*config_flags_given)
        suite.write(numbers, out)
    print(tables.markdown(numbers))


def _time_growth(config: Config, rounds: int, seconds: float, out: pathlib.Path) -> None:
    from dawm_jax.benchmark import growth, tables
    from dawm_jax.runtime import provenance

    axes = {name: growth.AXES[name] for name in _axes()}
    numbers = growth.run(config, axes=axes, rounds=rounds, seconds=seconds)
    text = tables.growth_markdown(numbers)
    provenance.write_atomically(out / "growth.json", json.dumps(numbers, indent=1) + "\n")
    provenance.write_atomically(out / "growth.md", text)
    tables.plot_growth(numbers, out / "growth.png")
    print(text)


# --- flags --------------------------------------------------------------------------------


def _check() -> None:
    if _CONFIG.value is not None:
        flag.check(_CONFIG)
    measure.check_seconds(_SECONDS.value)
    _stages(), _sides(), _axes()


def _stages() -> list[str]:
    from dawm_jax.benchmark import jax_side

    return _chosen("stages", _STAGES.value, list(jax_side.STAGES))


def _sides() -> list[str]:
    from dawm_jax.benchmark import suite

    sides = _chosen("torch", _TORCH.value, list(suite.TORCH))
    if _QUICK.value and _TORCH.value is None:
        sides.remove("compiled")
    return sides


def _axes() -> list[str]:
    from dawm_jax.benchmark import growth

    return _chosen("axes", _AXES.value, list(growth.AXES))


def _chosen(name: str, given: list[str] | None, known: list[str]) -> list[str]:
    """The values of a list flag, or all known ones if it is not given."""
    for value in given or []:
        if value not in known:
            raise ValueError(f"--{name}: expected some of {', '.join(known)}, got {value!r}")
    return known if given is None else given


def _config() -> tuple[Config, list[str]]:
    """The settings, and the flags that give them to the main program."""
    if _CONFIG.value is not None:
        return schema.parse(_CONFIG.value), _config_flags(sys.argv[1:])
    import jax

    variant = "quick" if jax.default_backend() == "cpu" else ""
    return schema.parse(schema.get_config(variant)), [f"--config=hopper:{variant}"]


def _config_flags(arguments: Sequence[str]) -> list[str]:
    """The flags --config and --config.* of a command line, with their values."""
    found, takes_value = [], False
    for argument in arguments:
        is_flag = argument.startswith("-")
        is_config = is_flag and argument.lstrip("-").partition("=")[0].split(".")[0] == "config"
        if is_config or (takes_value and not is_flag):
            found.append(argument)
        takes_value = is_config and "=" not in argument
    return found


def run() -> None:
    """Entry point of the console script."""
    cli.run(main, __doc__, prepare=by_name.resolve, check=_check, explain=flag.explain)


if __name__ == "__main__":
    run()
