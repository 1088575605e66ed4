"""Kills, damages and starves real runs of the program, and counts how many ended right.

python launch/reliability.py --out OUT.json             a few of each fault: minutes
python launch/reliability.py --out OUT.json --count 20  twenty of each fault at each place
python launch/reliability.py --out OUT.json --minutes 8 begins no fault after eight minutes

The faults are those of tests/faults/harness.py, on tiny runs in a temporary folder, and
docs/reliability.md says what must hold. results/reliability/reliability.json, which its table is
made of, was written by this command. The exit code is 1 if a fault did not hold. The same --seed
chooses the same faults.
"""

import dataclasses
import json
import os
import pathlib
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from _command import ROOT, Parser

# This folder leaves the import path: its modules have names of installed packages.
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

if TYPE_CHECKING:
    from faults.harness import Fault

# Two processes train together: a fault of this kind takes a minute.
_SLOW, _SLOW_SHARE = "kill -9 of one of two", 4


def plan(count: int, seed: int) -> list[tuple[str, str, int]]:
    """Kind, place and seed of every fault; those of all kinds take turns."""
    from faults import harness

    return [
        (kind, place, seed + round_)
        for round_ in range(count)
        for kind in harness.KINDS
        if kind != _SLOW or round_ % _SLOW_SHARE == 0
        for place in harness.places(kind)
    ]


def try_all(arguments: Any) -> "list[Fault]":
    """Makes the faults and prints each that did not hold."""
    from faults import harness

    faults = []
    with tempfile.TemporaryDirectory(prefix="dawm_jax-faults-") as folder:
        lab = harness.Lab(pathlib.Path(folder), servers=arguments.jobs)
        try:
            deadline = time.monotonic() + 60.0 * arguments.minutes
            faults_of = harness.try_all(
                lab, plan(arguments.count, arguments.seed), jobs=arguments.jobs, deadline=deadline
            )
            for fault in faults_of:
                faults.append(fault)
                if not fault.held:
                    print(
                        f"{fault.kind}, {fault.place}, seed {fault.seed}: {fault.ending}",
                        flush=True,
                    )
        finally:
            lab.close()
    return faults


def count(faults: "list[Fault]") -> list[dict[str, Any]]:
    """How many faults of each kind and place were tried, held, and ended in which way."""
    from faults.harness import EQUAL, KINDS, ONE_LINE

    rows = []
    for kind, (_, places) in KINDS.items():
        for place in places:
            endings = [
                fault.ending for fault in faults if (fault.kind, fault.place) == (kind, place)
            ]
            if endings:
                row = {"kind": kind, "place": place, "tried": len(endings)}
                found = {"equal": endings.count(EQUAL), "one_line": endings.count(ONE_LINE)}
                rows.append({**row, "held": sum(found.values()), **found})
    return rows


def _parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument(
        "--out", type=pathlib.Path, metavar="OUT.json", required=True, help="file to write"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.json")
    parser.add_argument("--count", type=int, default=2, help="faults of each kind and place (2)")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no fault later than this")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices (0)")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time (2)")
    return parser


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args()
    for name in ("count", "jobs"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(arguments, name)}")
    if not arguments.minutes >= 0.0:
        parser.error(f"--minutes: expected at least 0, got {arguments.minutes}")
    parser.refuse_existing(arguments.out, overwrite=arguments.overwrite)
    parser.need_folder(arguments.out)
    os.environ["JAX_PLATFORMS"] = "cpu"

    from faults import harness

    from dawm_jax.runtime import provenance

    start = time.monotonic()
    faults = try_all(arguments)
    suites = {
        name: {"file": path, "inputs": inputs(), **harness.count_suite(path)}
        for name, (path, inputs) in harness.SUITES.items()
    }
    found = {
        "device": f"{provenance.num_cores()} cores, {provenance.cpu_model()}",
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - start),
        "faults": count(faults),
        "suites": suites,
        "failures": [dataclasses.asdict(fault) for fault in faults if not fault.held],
    }
    provenance.write_atomically(arguments.out, json.dumps(found, indent=1) + "\n")
    failed = [one for one in suites.values() if one["held"] != one["tried"]]
    return int(bool(found["failures"] or failed))


if __name__ == "__main__":
    sys.exit(main())
