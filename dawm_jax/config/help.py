"""Every setting as text: for --help, and as the table of docs/configuration.md."""

from typing import Any

from dawm_jax.config import schema
from dawm_jax.runtime.settings import SCALES, Spec


def text() -> str:
    """Every setting as a flag with its default, meaning, range and source."""
    lines = ["Configuration settings and their defaults:"]
    section = None
    for name, spec in schema.fields():
        parent = name.rpartition(".")[0]
        if parent != section:
            section = parent
            lines.append(f"\n{parent}:")
        lines += [f"  --{name}={_plain(spec.default(SCALES[0]))}", f"      {_meaning(spec)}"]
    return "\n".join(lines)


def table() -> str:
    """A Markdown table of every setting with its defaults in all variants."""
    lines = [
        "| setting | full | quick | smoke | allowed | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for name, spec in schema.fields():
        defaults = " | ".join(f"`{_plain(spec.default(scale)) or ' '}`" for scale in SCALES)
        meaning = spec.help + (f" ({spec.source})" if spec.source else "")
        lines.append(f"| `{name}` | {defaults} | {spec.describe_range()} | {meaning} |")
    return "\n".join(lines)


def _meaning(spec: Spec) -> str:
    source = f" ({spec.source})" if spec.source else ""
    return f"{spec.help}; {spec.describe_range()}{source}"


def _plain(value: Any) -> str:
    return str(value).replace(" ", "") if isinstance(value, tuple) else str(value)
