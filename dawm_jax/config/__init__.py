"""The configuration: every setting of a run, typed and checked, and the files that choose them.

It may import agents and what agents may import; methods add their own sections to it.
"""

from dawm_jax.config.schema import Config, get_config, parse

__all__ = ["Config", "get_config", "parse"]
