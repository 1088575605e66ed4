"""Bytes that programs exchange between devices, and predicted durations on several chips.

python launch/scaling.py --count OUT.json      compiles the programs for 1, 2, 4 and 8 devices
python launch/scaling.py --predict OUT.json    evaluates the cost model at full size

Devices are virtual: threads of the host. The bytes are those of any devices, because they are read
from the compiled programs. The predictions are a model, not a measurement. The files
results/scaling/quick/scaling.json and results/scaling/model.json, which the tables of
docs/performance.md are made of, were written by this command.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from _command import ROOT, Parser

# This folder leaves the import path: its modules have names of installed packages.
sys.path[0] = str(ROOT)

if TYPE_CHECKING:
    from dawm_jax.data.replay import Replay
    from dawm_jax.runtime.loop import JittedSteps
    from dawm_jax.runtime.sharding import Placement
    from dawm_jax.training.setup import Setup

State = TypeVar("State")

_DEVICES = (1, 2, 4, 8)
_SEEDS = (5, 8, 64)  # numbers of agents that the cost model is evaluated for
_STEPS = 2  # of a compiled call: more than one, so that the program is a loop as in training
# Updates between two generations; few, because generation is what exchanges data.
_UPDATES_PER_ROUND = 10


def prepare(variant: str) -> "tuple[Setup, Replay]":
    """What a run on the bundled dataset computes with, and its data."""
    from dawm_jax.config import schema
    from dawm_jax.data.load import load_dataset
    from dawm_jax.training import setup

    config = schema.parse(schema.get_config(variant))
    replay, normalizer = setup.build_replay(config, load_dataset(config.dataset))
    return setup.make(config, normalizer), replay


# --- counted bytes ------------------------------------------------------------------------


def count_here(variant: str) -> dict[str, Any]:
    """Bytes per step of every program on the devices of this process."""
    import jax

    from dawm_jax.models import networks
    from dawm_jax.runtime import sharding

    parts, replay = prepare(variant)
    found: dict[str, Any] = {"parameters": {}}
    for name, model in parts.method.models.items():
        sizes = {f"config.{name}.batch_size": model.settings.batch_size}
        placement = sharding.place("mesh", num_seeds=1, batch_sizes=sizes)
        label = f"{name.replace('_', ' ')}, steps"
        params = jax.eval_shape(model.init, jax.random.key(0)).params
        found["parameters"][label] = networks.count_parameters(params)
        found[label] = _count_model(parts, name, placement, replay)
    seeds = {"a seed a device, rounds": jax.device_count(), "one seed, rounds": 1}
    for label, num_seeds in seeds.items():
        found[label] = _count_agents(parts, num_seeds, replay)
    return found


def _count_model(parts: "Setup", name: str, placement: "Placement", replay: "Replay") -> Any:
    import jax

    from dawm_jax.runtime import loop
    from dawm_jax.training import stages

    model, key = parts.method.models[name], jax.random.key(0)
    steps = loop.JittedSteps(
        stages.model_steps(model, placement),
        key=placement.replicate(key),
        constants=placement.replicate(replay),
        placement=placement,
        over_seeds=False,
    )
    return _count(steps, placement.replicate(jax.jit(model.init)(key)), _STEPS)


def _count_agents(parts: "Setup", num_seeds: int, replay: "Replay") -> Any:
    import jax

    from dawm_jax.config import schema
    from dawm_jax.runtime import loop, sharding
    from dawm_jax.training import setup, stages
    from dawm_jax.training.fused import Inputs

    placement = sharding.place("mesh", num_seeds=num_seeds, batch_sizes={})
    names = ("updates", "log_updates", "checkpoint_updates")
    changes = dict.fromkeys((f"training.{name}" for name in names), _STEPS * _UPDATES_PER_ROUND)
    changes["rollout.updates_per_round"] = _UPDATES_PER_ROUND
    config = schema.replace(parts.config, changes)
    parts = setup.make(config, parts.normalizer, shard_windows=placement.shard_windows)
    training, key = parts.training, jax.random.key(0)
    assert training is not None
    averages = {
        name: jax.jit(model.init)(key).average for name, model in parts.method.models.items()
    }
    keys = jax.random.split(key, num_seeds)
    steps = loop.JittedSteps(
        training.step,
        key=placement.place_seeds(keys),
        constants=placement.replicate(Inputs(averages, replay)),
        placement=placement,
        over_seeds=True,
    )
    agents = stages.init_agents(training, keys, placement)
    return _count(steps, agents, _STEPS * _UPDATES_PER_ROUND, per=_STEPS)


def _count(
    steps: "JittedSteps[State]", state: State, num_steps: int, *, per: int | None = None
) -> dict[str, dict[str, float]]:
    """Bytes by kind of collective, divided by `per`, by default the number of steps."""
    from dawm_jax.benchmark import scaling

    text = steps.lower(state, num_steps).compile().as_text()
    assert text is not None  # None on platforms that keep no text of a program
    total = scaling.count_collectives(text)
    return {"bytes_per_step": {kind: total[kind] / (per or num_steps) for kind in sorted(total)}}


def count(variant: str) -> dict[int, Any]:
    """`count_here` for each of `_DEVICES`, each in its own process."""
    found = {}
    for devices in _DEVICES:
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
        }
        command = [sys.executable, __file__, "--here", f"--variant={variant}"]
        output = subprocess.check_output(command, env=environment, text=True)
        found[devices] = json.loads(output.splitlines()[-1])
    return found


# --- predicted durations ------------------------------------------------------------------


def predict() -> list[dict[str, Any]]:
    """Durations of the full-size stages by machine and number of seeds."""
    from dawm_jax.benchmark import scaling
    from dawm_jax.training import cost_model

    return [
        {
            "stage": stage.text.split(",")[0],
            "seeds": None if stage.seeds == 1 else seeds,
            "machine": machine.name,
            **_fields(scaling.predict(stage._replace(seeds=seeds), machine)),
        }
        for stage in cost_model.stages(*prepare(""))
        for seeds in ((1,) if stage.seeds == 1 else _SEEDS)
        for machine in scaling.MACHINES
    ]


def _fields(prediction: Any) -> dict[str, Any]:
    """The fields of a prediction that the table shows."""
    names = ("seconds", "busy_chips", "communication")
    return {name: getattr(prediction, name) for name in names}


# --- the command --------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--count", type=pathlib.Path, metavar="OUT.json", help="file to write")
    what.add_argument("--predict", type=pathlib.Path, metavar="OUT.json", help="file to write")
    what.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--variant", default="quick", help="whose programs are counted (quick)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.json")
    return parser


def _check_variant(parser: Parser, variant: str) -> None:
    from dawm_jax.config import schema

    try:
        schema.get_config(variant)
    except ValueError as error:
        parser.error(f"--variant: {error}")


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(count_here(arguments.variant)))
        return 0
    out = arguments.count or arguments.predict
    parser.refuse_existing(out, overwrite=arguments.overwrite)
    _check_variant(parser, arguments.variant)
    parser.need_folder(out)
    found = count(arguments.variant) if arguments.count else {"predictions": predict()}
    out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
