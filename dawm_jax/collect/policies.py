"""Behaviour policies: the file that holds them, those in the package, and sampling from them."""

import dataclasses
import functools
import json
import pathlib
from typing import Any, Protocol

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from dawm_jax.collect import sac
from dawm_jax.runtime import provenance
from dawm_jax.types import Params, UserError, first_line

_ASSETS = pathlib.Path(__file__).parent / "assets"


@dataclasses.dataclass(frozen=True)
class Policies:
    """The policies of one training that tiers of data are collected with.

    Attributes:
      environment: Gymnasium id.
      actors: parameters of SAC policies: "medium", "expert", and "replay-0", "replay-1", ...,
        which filled the replay buffer before medium, in this order.
      card: JSON-able facts about the training: returns, environment steps, versions, settings.
    """

    environment: str
    actors: dict[str, Params]
    card: dict[str, Any]


def check_environment(policies: Policies, environment: str) -> None:
    """Raises UserError if the policies are of another environment."""
    if policies.environment != environment:
        raise UserError(
            f"the policies are for {policies.environment}, --env is {environment}: "
            "name the environment that they were trained in"
        )


# --- files --------------------------------------------------------------------------------


def save_policies(policies: Policies, path: pathlib.Path) -> None:
    """Writes one compressed .npz file, whole or not at all; weights are rounded to 16 bits.

    Args:
      policies: what to write.
      path: of the file; its folder is made if it is absent.

    Raises:
      OSError: the file cannot be written.
    """
    arrays: dict[str, Any] = {
        f"{name}/{leaf}": np.asarray(value, np.float16)
        for name, actor in policies.actors.items()
        for leaf, value in flax.traverse_util.flatten_dict(actor, sep="/").items()
    }
    text = json.dumps({"environment": policies.environment, "card": policies.card})
    path.parent.mkdir(parents=True, exist_ok=True)
    with provenance.whole_file(path) as part, part.open("wb") as file:
        np.savez_compressed(file, about=np.array(text), **arrays)


def load_policies(path: pathlib.Path) -> Policies:
    """Reads what `save_policies` wrote.

    Raises:
      UserError: there is no such file, or it holds something else.
    """
    try:
        with np.load(path) as file:
            about = json.loads(str(file["about"]))
            flat: dict[str, dict[str, np.ndarray]] = {}
            for key in file.files:
                if key != "about":
                    name, leaf = key.split("/", 1)
                    flat.setdefault(name, {})[leaf] = file[key].astype(np.float32)
        actors = {
            name: flax.traverse_util.unflatten_dict(leaves, sep="/")
            for name, leaves in flat.items()
        }
        return Policies(about["environment"], actors, about["card"])
    except FileNotFoundError:
        raise UserError(f"no policies at {path}: expected a policies.npz of a training") from None
    except Exception as error:  # a damaged archive raises errors of many kinds
        raise UserError(f"{path} holds no behaviour policies ({first_line(error)})") from error


def shipped_environments() -> list[str]:
    """Gymnasium ids that the package has policies for."""
    return sorted(file.stem for file in _ASSETS.glob("*.npz"))


def shipped_policies(environment: str) -> Policies:
    """The policies in the package for a Gymnasium id.

    Raises:
      UserError: there are none.
    """
    path = _ASSETS / f"{environment}.npz"
    if not path.is_file():
        known = ", ".join(shipped_environments())
        raise UserError(
            f"no policies are shipped for {environment} (there are {known}): train some with "
            f"--env={environment} --train --workdir=DIR, then pass --policies=DIR/policies.npz"
        )
    return load_policies(path)


# --- sampling -----------------------------------------------------------------------------


class SampleFn(Protocol):
    """Samples actions of a policy."""

    def __call__(
        self, actor: Params, observations: jax.typing.ArrayLike, key: jax.Array, /
    ) -> jax.Array:
        """Actions [n, A] in environment units for raw observations [n, S]; `key` is consumed."""


def make_sampler(action_space: Any) -> SampleFn:
    """A jitted sampler of SAC policies.

    Args:
      action_space: the Box of the environment's actions.
    """
    low, high = jnp.asarray(action_space.low), jnp.asarray(action_space.high)
    networks = functools.partial(_networks_of, action_size=low.size)

    @jax.jit
    def sampled(actor: Params, observations: jax.Array, key: jax.Array) -> jax.Array:
        noise = jax.random.normal(key, (len(observations), low.size))
        action, _ = sac.sample(actor, observations, noise, networks=networks(actor))
        return (high + low)[None] / 2 + (high - low)[None] / 2 * action

    return sampled


def _networks_of(actor: Params, action_size: int) -> sac.Networks:
    """Networks with the hidden sizes of the given parameters."""
    layers = actor["params"]
    widths = [layers[f"Dense_{i}"]["bias"].shape[0] for i in range(len(layers) - 1)]
    return sac.make_networks(tuple(widths), action_size)
