"""Contents of the JSON files that the benchmark writes."""

from typing import NotRequired, TypedDict


class Rates(TypedDict):
    """Rates of one candidate in units per second: median and range of the rounds, and all."""

    median: float
    low: float
    high: float
    rounds: list[float]


class SideRecord(Rates):
    """One side of one stage."""

    compile_seconds: float  # until the first call was done; of JAX the compilation alone
    peak_memory: NotRequired[dict[str, float]]  # "host" or "device" -> bytes


class StageRecord(TypedDict):
    """One stage on all sides."""

    unit: str
    flops_per_unit: float  # of matrix products
    sides: dict[str, SideRecord]
    matmul: dict[str, Rates]  # "jax" or "torch" -> FLOP/s of a large matrix product


class Header(TypedDict):
    """What was measured, and on what."""

    environment: str
    variant: str
    dataset: str
    dtype: str
    device: str
    versions: dict[str, str]
    commit: str | None


class Benchmark(Header):
    """benchmark.json."""

    torch_threads: int | None
    stages: dict[str, StageRecord]
    start: NotRequired[dict[str, float]]  # "cold" or "warm" -> seconds to the first step


class Point(Rates):
    """One stage at one size."""

    size: int
    unit: str
    flops_per_unit: float


class Growth(Header):
    """growth.json: axis -> stage -> points by ascending size."""

    devices: int
    growth: dict[str, dict[str, list[Point]]]


class LatencyCase(TypedDict):
    """One case of speed.json."""

    kind: str
    method: str
    batch: int
    seconds_per_1000: float  # median of the turns
    turns: list[float]


class Latency(TypedDict):
    """speed.json."""

    device: str
    environment: str
    variant: str
    cases: list[LatencyCase]
    versions: dict[str, str]
    commit: str | None
