"""Several chips: bytes counted in compiled programs, and a model of durations.

`count_collectives` reads from a compiled program what it sends between devices; the count is
exact. `predict` is a model of chips that need not be present. Its output is a prediction, good to
an order of magnitude; of its chips, only single stages on one H100 have been timed.
"""

import dataclasses
import math
import re
from collections import Counter
from typing import NamedTuple

from dawm_jax.training.cost_model import OPERATION_SECONDS, StageCost

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8}
_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) .*\{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_CALLED = re.compile(r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ITERATIONS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


def count_collectives(hlo: str) -> Counter[str]:
    """Bytes that one call of a program sends, by kind of collective.

    A collective counts the size of its result on one device, which for an all-reduce equals the
    size of its operand, times the iterations of the loops around it.

    Args:
      hlo: text of a compiled program, `compiled.as_text()`.

    Raises:
      ValueError: a collective in a loop of unknown length.
    """
    computations, entry = _parse(hlo)

    def total(name: str) -> Counter[str]:
        computation = computations[name]
        found = Counter(computation.sent)
        for callee, iterations in computation.calls:
            inner = total(callee)
            if inner and iterations is None:
                raise ValueError(f"{callee}: a collective in a loop of unknown length")
            for kind, size in inner.items():
                found[kind] += size * (iterations or 0)
        return found

    return total(entry)


@dataclasses.dataclass
class _Computation:
    """A function of an HLO program.

    Attributes:
      sent: bytes of its own collectives, by kind.
      calls: names of the functions that it calls, and how often; None if that is unknown.
    """

    sent: Counter[str] = dataclasses.field(default_factory=Counter)
    calls: list[tuple[str, int | None]] = dataclasses.field(default_factory=list)


def _parse(hlo: str) -> tuple[dict[str, _Computation], str]:
    """All functions of a program by name, and the name of its entry."""
    computations: dict[str, _Computation] = {}
    computation, entry = _Computation(), ""
    for line in hlo.splitlines():
        if header := _HEADER.match(line):
            computation = computations[header[2]] = _Computation()
            entry = header[2] if header[1] else entry
        elif match := _COLLECTIVE.search(line):
            computation.sent[match[2]] += _shape_bytes(match[1])
        elif " while(" in line:
            known = _ITERATIONS.search(line)
            iterations = int(known[1]) if known else None
            computation.calls += [(callee, iterations) for callee in _CALLED.findall(line)]
        else:
            callees = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                callees += re.findall(r"[\w.-]+", branches)
            computation.calls += [(callee, 1) for callee in callees]
    return computations, entry


def _shape_bytes(text: str) -> int:
    """Bytes of an HLO shape or tuple of shapes, f32[8,3]{1,0}."""
    sizes = [math.prod(map(int, filter(None, dims.split(",")))) for _, dims in _SHAPE.findall(text)]
    kinds = [_BYTES[kind] for kind, _ in _SHAPE.findall(text)]
    return sum(size * kind for size, kind in zip(sizes, kinds, strict=True))


# --- the model ----------------------------------------------------------------------------


class Machine(NamedTuple):
    """Chips and the links between them, by the makers' published peak rates.

    Attributes:
      name: display name.
      chips: number of them.
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

# Constants of the model: assumed, not measured. `OPERATION_SECONDS`, which was measured on an H100,
# is assumed for the other chips too.
PEAK_SHARE = 0.1  # share of the peak rate that products of a few hundred rows reach
HOP_SECONDS = 2e-6  # fixed cost of one hop of a collective
# Passes of a training step over 4 bytes per parameter: the forward and the backward pass read the
# parameter (2); the gradient is written and read (2); the optimiser reads and writes the
# parameter (2) and both moments (4); the moving average is read and written (2).
PARAMETER_PASSES = 12


class Prediction(NamedTuple):
    """Prediction for one stage on one machine.

    Attributes:
      seconds: duration of the stage.
      communication: share of the seconds spent on exchange between chips.
      busy_chips: chips that shorten the stage; the others repeat its work.
      collective_bytes: all-reduced per step on each chip.
    """

    seconds: float
    communication: float
    busy_chips: int
    collective_bytes: int


def predict(stage: StageCost, machine: Machine) -> Prediction:
    """Predicts the duration of a stage.

    Seeds are spread over chips first, then the batch of each seed. A step takes the longest of
    its arithmetic, its memory traffic and the launches of its kernels. A ring all-reduce of the
    gradients follows, which sends 2 (n - 1) / n of their bytes through each link.

    Args:
      stage: what is computed.
      machine: the chips.
    """
    seed_chips = math.gcd(stage.seeds, machine.chips)
    batch_chips = machine.chips // seed_chips if stage.shared else 1
    flops = stage.flops * stage.seeds / seed_chips / batch_chips
    sent = 4 * stage.exchanged
    step = max(
        flops / (PEAK_SHARE * machine.flops),
        PARAMETER_PASSES * 4 * stage.parameters / machine.memory,
        stage.operations * OPERATION_SECONDS,
    )
    exchange = 0.0
    if sent and batch_chips > 1:
        exchange = 2 * (batch_chips - 1) * (sent / batch_chips / machine.link + HOP_SECONDS)
    seconds = stage.steps * (step + exchange)
    return Prediction(
        seconds=seconds,
        communication=exchange / (step + exchange),
        busy_chips=seed_chips * batch_chips,
        collective_bytes=sent if batch_chips > 1 else 0,
    )
