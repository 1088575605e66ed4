"""What more chips bring: bytes counted in compiled programs, and a model of the time.

`count_collectives` reads what a compiled program sends between devices; it is exact.
`predict` is a model, of chips this package may never have seen: it says which work is worth
another chip and roughly how long a run takes, not how fast anything is.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

from dawm_jax.training.cost_model import StageCost

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8}
_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) .*\{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_CALLED = re.compile(r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


def count_collectives(hlo: str) -> Counter[str]:
    """Bytes that one run of a program sends, by kind of collective.

    A collective counts with the size of its result on one device (of an all-reduce that is
    also its operand's), as often as the loops around it turn.

    Args:
      hlo: text of a compiled program, `compiled.as_text()`.

    Raises:
      ValueError: a collective stands in a loop of unknown length.
    """
    own: dict[str, Counter[str]] = {}
    calls: dict[str, list[tuple[str, int | None]]] = {}
    name = entry = ""
    for line in hlo.splitlines():
        if header := _HEADER.match(line):
            name = header[2]
            own[name], calls[name] = Counter(), []
            entry = name if header[1] else entry
        elif match := _COLLECTIVE.search(line):
            own[name][match[2]] += _shape_bytes(match[1])
        elif " while(" in line:
            trips = _TRIPS.search(line)
            turns = int(trips[1]) if trips else None
            calls[name] += [(callee, turns) for callee in _CALLED.findall(line)]
        else:
            callees = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                callees += re.findall(r"[\w.-]+", branches)
            calls.setdefault(name, []).extend((callee, 1) for callee in callees)

    def total(name: str) -> Counter[str]:
        found = Counter(own[name])
        for callee, turns in calls[name]:
            inner = total(callee)
            if inner and turns is None:
                raise ValueError(f"{callee}: a collective in a loop of unknown length")
            for kind, size in inner.items():
                found[kind] += size * (turns or 0)
        return found

    return total(entry)


def _shape_bytes(text: str) -> int:
    """Bytes of an HLO shape or tuple of shapes, f32[8,3]{1,0}."""
    sizes = [math.prod(map(int, filter(None, dims.split(",")))) for _, dims in _SHAPE.findall(text)]
    kinds = [_BYTES[kind] for kind, _ in _SHAPE.findall(text)]
    return sum(size * kind for size, kind in zip(sizes, kinds, strict=True))


# --- the model ----------------------------------------------------------------------------


class Machine(NamedTuple):
    """Chips and what joins them; the makers' published peaks.

    Attributes:
      name: for people.
      chips: in the machine.
      flops: peak FLOP/s of a chip at the precision that float32 programs use there by
        default (TF32 on a GPU, one bfloat16 pass on a TPU).
      memory: bytes/s between a chip and its memory.
      link: bytes/s that a chip sends to the others.
    """

    name: str
    chips: int
    flops: float
    memory: float
    link: float


MACHINES = (
    Machine("1 GPU (H100)", 1, 495e12, 3.35e12, 450e9),
    Machine("8 GPUs (H100, NVLink)", 8, 495e12, 3.35e12, 450e9),
    Machine("TPU v5e-8", 8, 197e12, 819e9, 100e9),
    Machine("TPU v6e-64", 64, 918e12, 1640e9, 224e9),
)

# Assumptions. Share of the peak that matrices of a few hundred rows reach; seconds of a kernel's
# launch, or of an operation's fixed cost on a TPU; kernels left of the lowered program's
# operations after fusion; seconds that one hop of a collective takes however small it is.
_PEAK_SHARE = 0.1
_OPERATION_SECONDS = 2e-6
_FUSED_SHARE = 0.3
_HOP_SECONDS = 2e-6
# A training step reads and writes a float32 parameter, its gradient, Adam's two moments and
# the average about this often.
_PARAMETER_PASSES = 12


class Prediction(NamedTuple):
    """What the model says of one stage on one machine.

    Attributes:
      seconds: of the stage.
      communication: share of them spent between chips.
      busy_chips: chips that shorten it; the others repeat their work.
      collective_bytes: a step exchanges by all-reduce, on each chip.
    """

    seconds: float
    communication: float
    busy_chips: int
    collective_bytes: int


def predict(stage: StageCost, machine: Machine) -> Prediction:
    """Time of a stage: seeds are spread over chips first, then the batch of each.

    A step takes the longest of its arithmetic, its memory traffic and its kernels' launches,
    then a ring all-reduce of the gradients, 2 (n - 1) / n of their bytes through each link.
    """
    seed_chips = math.gcd(stage.seeds, machine.chips)
    batch_chips = machine.chips // seed_chips if stage.shared else 1
    flops = stage.flops * stage.seeds / seed_chips / batch_chips
    sent = 4 * stage.exchanged
    step = max(
        flops / (_PEAK_SHARE * machine.flops),
        _PARAMETER_PASSES * 4 * stage.parameters / machine.memory,
        _FUSED_SHARE * stage.operations * _OPERATION_SECONDS,
    )
    exchange = 0.0
    if sent and batch_chips > 1:
        exchange = 2 * (batch_chips - 1) * (sent / batch_chips / machine.link + _HOP_SECONDS)
    seconds = stage.steps * (step + exchange)
    return Prediction(
        seconds=seconds,
        communication=exchange / (step + exchange),
        busy_chips=seed_chips * batch_chips,
        collective_bytes=sent if batch_chips > 1 else 0,
    )
