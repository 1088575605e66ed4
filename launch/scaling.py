"""How the work spreads over devices: bytes between them, and the speed of virtual ones.

python launch/scaling.py results/scaling/quick          counts and measures 1, 2, 4, 8 devices
python launch/scaling.py --model                        the cost model's table, for BUILD.md

Virtual devices are threads on the same cores: their speed shows what spreading costs, never
what it brings. The bytes are those of any 1, 2, 4 or 8 devices.
"""

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
import time

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_DEVICES = (1, 2, 4, 8)
_SEEDS = (5, 8, 64)  # of the model's table


def measure(variant: str, seconds: float) -> dict:
    """Bytes and steps/s of each program on the devices of this process."""
    import jax
    import jax.numpy as jnp

    from dawm_jax.benchmark import scaling
    from dawm_jax.models import networks
    from dawm_jax.runtime import parallel
    from dawm_jax.training import fused, programs

    count = jax.device_count()
    config, parts, replay = _prepare(variant)
    # Fewer than usual: generation is what spreads.
    per_round = config.rollout.updates_per_round = 10
    steps, found = 2, {}

    def record(name, program, state, arguments, steps_per_call):
        start = time.monotonic()
        compiled = program.lower(state, *arguments).compile()
        total = scaling.count_collectives(compiled.as_text())
        each = {kind: total[kind] / steps_per_call for kind in sorted(total)}
        print(f"{count} devices, {name}: compiled in {time.monotonic() - start:.0f} s", flush=True)
        state = jax.block_until_ready(compiled(state, *arguments))[0]
        start, calls = time.monotonic(), 0
        while not calls or time.monotonic() - start < seconds:
            state = jax.block_until_ready(compiled(state, *arguments))[0]
            calls += 1
        speed = calls * steps_per_call / (time.monotonic() - start)
        found[name] = {"bytes_per_step": each, "steps_per_second": speed}

    # --- the models: one batch over all devices ---
    averages, found["parameters"] = {}, {}
    for name, model in parts.models.items():
        sizes = {"batch": model.section.batch_size}
        placement = parallel.place("mesh", num_seeds=1, batch_sizes=sizes)
        shared = placement.replicate(replay)
        state = model.init(jax.random.key(0))
        averages[name] = placement.replicate(jax.tree.map(jnp.copy, state.params))
        label = f"{name.replace('_', ' ')}, steps"
        found["parameters"][label] = networks.count_parameters(state.params)
        record(
            label,
            programs.model_steps(model, placement, num_steps=steps),
            placement.replicate(state),
            (placement.replicate(jax.random.key(1)), shared, jnp.int32(0)),
            steps,
        )
    models = fused.Models(**averages)

    # --- agents: a seed a device, and one seed whose windows all devices share ---
    for name, num_seeds in (("a seed a device, rounds", count), ("one seed, rounds", 1)):
        placement = parallel.place("mesh", num_seeds=num_seeds, batch_sizes={})
        keys = jax.random.split(jax.random.key(2), num_seeds)
        runs = jax.jit(functools.partial(jax.lax.map, parts.init_run))(keys)
        record(
            name,
            programs.agent_rounds(config, parts, placement, num_updates=steps * per_round),
            placement.place_seeds(runs),
            (placement.place_seeds(keys), jnp.int32(0), models, shared),
            steps,
        )
    return found


def _prepare(variant: str):
    """Configuration, functions and data of the bundled set."""
    from configs import hopper
    from dawm_jax.data import dataset as data
    from dawm_jax.methods import registry as assembly

    config = hopper.get_config(variant)
    replay, statistics = assembly.build_replay(config, data.load_dataset(config.dataset))
    return config, assembly.assemble(config, statistics), replay


def spread(variant: str, seconds: float) -> dict[int, dict]:
    """`measure` with each number of virtual devices, in processes of their own."""
    found = {}
    for devices in _DEVICES:
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
            "PYTHONPATH": str(_ROOT),
        }
        command = [sys.executable, __file__, f"--variant={variant}", f"--seconds={seconds}"]
        output = subprocess.check_output([*command, "--here"], env=environment, text=True)
        found[devices] = json.loads(output.splitlines()[-1])
    return found


def table(found: dict[int, dict]) -> str:
    """Markdown: bytes between devices, and the work done a second beside one device's."""
    lines = [
        "| program | devices | all-reduce bytes | other bytes | work/s, 1 device = 1 |",
        "|---|---|---|---|---|",
    ]
    names = [name for name, value in found[1].items() if name != "parameters"]
    for name in names:
        for devices, entries in found.items():
            entry = entries[name]
            sent = dict(entry["bytes_per_step"])
            reduced = sent.pop("all-reduce", 0)
            others = ", ".join(f"{kind} {size:,.0f}" for kind, size in sent.items()) or "0"
            work = devices if name.startswith("a seed a device") else 1
            speed = work * entry["steps_per_second"] / found[1][name]["steps_per_second"]
            lines.append(f"| {name} | {devices} | {reduced:,.0f} | {others} | {speed:.2f} |")
    return "\n".join(lines) + "\n"


def model_table() -> str:
    """Markdown: the cost model's times of the full protocol, with several numbers of seeds."""
    from dawm_jax.benchmark import scaling
    from dawm_jax.runtime.metrics import format_seconds
    from dawm_jax.training import cost_model as estimate

    lines = ["| stage | " + " | ".join(m.name for m in scaling.MACHINES) + " |"]
    lines.append("|---" * (len(scaling.MACHINES) + 1) + "|")
    for stage in estimate.stages(*_prepare("")):
        name = stage.text.split(",")[0]
        for seeds in (1,) if stage.seeds == 1 else _SEEDS:
            cells = [name if stage.seeds == 1 else f"{name}, {seeds} seeds"]
            for machine in scaling.MACHINES:
                found = scaling.predict(stage._replace(seeds=seeds), machine)
                text = f"{format_seconds(found.seconds)}, {found.busy_chips} busy"
                if found.communication:
                    text += f", {100 * found.communication:.0f} % between chips"
                cells.append(text)
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=pathlib.Path, nargs="?")
    parser.add_argument("--variant", default="quick")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--model", action="store_true", help="print the cost model's table")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(_ROOT))
    if arguments.model:
        print(model_table(), end="")
    elif arguments.here:
        print(json.dumps(measure(arguments.variant, arguments.seconds)))
    elif arguments.folder is None:
        parser.error("expected a folder for the results, or --model")
    else:
        found = spread(arguments.variant, arguments.seconds)
        arguments.folder.mkdir(parents=True, exist_ok=True)
        (arguments.folder / "scaling.json").write_text(json.dumps(found, indent=2) + "\n")
        (arguments.folder / "table.md").write_text(table(found))
        print(table(found), end="")


if __name__ == "__main__":
    main()
