"""Twins in PyTorch of the networks of `dawm_jax.models`: same functions, same parameters.

Networks take and return [B, T, C]; inside, convolutions compute on [B, C, T], PyTorch's order.
`copy_parameters` loads the parameters of a flax network into its twin.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# --- multi-layer perceptrons --------------------------------------------------------------


class Mlp(nn.Module):
    """ReLU hidden layers and a linear output.

    Args:
      size: size of the input.
      hidden: sizes of the hidden layers.
      out: size of the output.
      orthogonal: orthogonal kernels and zero biases (IQL); else PyTorch's defaults.
      layer_norm: whether a layer normalisation follows every ReLU.
    """

    def __init__(
        self,
        size: int,
        hidden: Sequence[int],
        out: int,
        *,
        orthogonal: bool = False,
        layer_norm: bool = False,
    ):
        super().__init__()
        sizes = [size, *hidden, out]
        layers = [nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
        if orthogonal:
            for layer in layers:
                nn.init.orthogonal_(layer.weight, float(np.sqrt(2.0)))
                nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)
        # The epsilon is flax's default.
        norms = [nn.LayerNorm(width, eps=1e-6) for width in hidden] if layer_norm else []
        self.norms = nn.ModuleList(norms)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        for index, layer in enumerate(self.layers[:-1]):
            x = F.relu(layer(x))
            if self.norms:
                x = self.norms[index](x)
        return self.layers[-1](x)

    def flax_children(self) -> dict[str, nn.Module]:
        """Flax's names of the layers."""
        layers = {f"Dense_{index}": layer for index, layer in enumerate(self.layers)}
        return layers | {f"LayerNorm_{index}": norm for index, norm in enumerate(self.norms)}


class TanhMlp(nn.Module):
    """A deterministic policy or an inverse dynamics model: an MLP squashed to [-1, 1]."""

    def __init__(self, size: int, hidden: Sequence[int], out: int, *, orthogonal: bool = False):
        super().__init__()
        self.mlp = Mlp(size, hidden, out, orthogonal=orthogonal)

    def forward(self, *inputs: Tensor) -> Tensor:
        """[..., any], ... -> [..., out]; the inputs are concatenated."""
        return torch.tanh(self.mlp(torch.cat(inputs, dim=-1)))

    def flax_children(self) -> dict[str, nn.Module]:
        """Flax's name of the MLP."""
        return {"Mlp_0": self.mlp}


class GaussianPolicy(nn.Module):
    """IQL's policy: tanh mean, state-independent log standard deviation, no squashing."""

    def __init__(self, size: int, hidden: Sequence[int], out: int, *, log_std: tuple[float, float]):
        super().__init__()
        self.mean = TanhMlp(size, hidden, out, orthogonal=True)
        self.log_std = nn.Parameter(torch.zeros(out))
        self.bounds = log_std

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """[..., S] -> mean [..., A] and log standard deviation [A]."""
        return self.mean(observation), self.log_std.clamp(*self.bounds)

    def flax_parameters(self) -> dict[str, nn.Parameter]:
        """Flax's name of the log standard deviation."""
        return {"log_std": self.log_std}

    def flax_children(self) -> dict[str, nn.Module]:
        """Flax's name of the mean."""
        return {"TanhMlp_0": self.mean}


class Critics(nn.Module):
    """Two Q functions.

    Two separate MLPs take 4 % less time on one CPU core than one MLP of batched products
    (`baddbmm`), with a batch of 256 and 256 hidden units.
    """

    def __init__(
        self,
        size: int,
        hidden: Sequence[int],
        *,
        orthogonal: bool = False,
        layer_norm: bool = False,
    ):
        super().__init__()
        self.members = nn.ModuleList(
            Mlp(size, hidden, 1, orthogonal=orthogonal, layer_norm=layer_norm) for _ in range(2)
        )

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """[..., S], [..., A] -> [2, ...]."""
        x = torch.cat([observation, action], dim=-1)
        return torch.stack([member(x)[..., 0] for member in self.members])

    def first(self, observation: Tensor, action: Tensor) -> Tensor:
        """The first critic alone, [..., S], [..., A] -> [...]."""
        return self.members[0](torch.cat([observation, action], dim=-1))[..., 0]


class Value(nn.Module):
    """IQL's state value."""

    def __init__(self, size: int, hidden: Sequence[int]):
        super().__init__()
        self.mlp = Mlp(size, hidden, 1, orthogonal=True)

    def forward(self, observation: Tensor) -> Tensor:
        """[..., S] -> [...]."""
        return self.mlp(observation)[..., 0]

    def flax_children(self) -> dict[str, nn.Module]:
        """Flax's name of the MLP."""
        return {"Mlp_0": self.mlp}


# --- the denoiser -------------------------------------------------------------------------


class _MishMlp(nn.Sequential):
    def __init__(self, *sizes: int):
        layers: list[nn.Module] = []
        for pair in itertools.pairwise(sizes):
            layers += [nn.Linear(*pair), nn.Mish()]
        super().__init__(*layers[:-1])

    def flax_children(self) -> dict[str, nn.Module]:
        return {f"Dense_{index}": layer for index, layer in enumerate(list(self)[::2])}


class _ConvBlock(nn.Sequential):
    def __init__(self, channels: int, features: int, kernel_size: int, groups: int):
        super().__init__(
            nn.Conv1d(channels, features, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(groups, features, eps=1e-5),
            nn.Mish(),
        )

    def flax_children(self) -> dict[str, nn.Module]:
        return {"TemporalConv_0": self[0], "GroupNorm_0": self[1]}


class _ResidualBlock(nn.Module):
    """conv-norm-mish, plus the embedding, conv-norm-mish, plus the input."""

    def __init__(
        self, channels: int, features: int, kernel_size: int, groups: int, embedding_size: int
    ):
        super().__init__()
        self.shift = nn.Linear(embedding_size, features)
        self.before = _ConvBlock(channels, features, kernel_size, groups)
        self.after = _ConvBlock(features, features, kernel_size, groups)
        same = channels == features
        self.skip = nn.Identity() if same else nn.Conv1d(channels, features, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """[B, C, T], [B, embedding] -> [B, features, T]."""
        hidden = self.before(x) + self.shift(embedding)[..., None]
        return self.after(hidden) + self.skip(x)

    def flax_children(self) -> dict[str, nn.Module]:
        # Flax counts modules as they are made, and `f()(f()(x))` makes the outer one first.
        names = {"Dense_0": self.shift, "_ConvBlock_0": self.after, "_ConvBlock_1": self.before}
        return names if isinstance(self.skip, nn.Identity) else {**names, "Dense_1": self.skip}


class TemporalUNet(nn.Module):
    """The U-Net over the tokens of a window; see `unet.TemporalUNet`.

    Args:
      inputs: channels of a token that the network sees.
      channels: channels of a predicted token, the first ones of an input token.
      action_size: A.
      dim: channels of the first level and size of each embedding.
      multipliers: channels of level i are dim * multipliers[i]; each level halves the time.
      kernel_size: taps of the residual blocks.
      groups: groups of the group normalisation.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        action_size: int,
        *,
        dim: int,
        multipliers: Sequence[int],
        kernel_size: int,
        groups: int,
    ):
        super().__init__()
        widths = [dim * multiplier for multiplier in multipliers]
        self.channels = channels
        self.stride = 2 ** (len(widths) - 1)
        self.register_buffer("frequencies", _frequencies(dim), persistent=False)
        self.of_step = _MishMlp(dim, 4 * dim, dim)
        self.of_return = _MishMlp(1, dim, 4 * dim, dim)
        self.of_action = _MishMlp(action_size, dim, 4 * dim, dim)

        def pair(before: int, after: int) -> list[nn.Module]:
            sizes = (kernel_size, groups, 3 * dim)
            return [_ResidualBlock(before, after, *sizes), _ResidualBlock(after, after, *sizes)]

        self.blocks = nn.ModuleList()
        first = inputs + channels + action_size
        for before, after in zip([first, *widths[:-1]], widths, strict=True):
            self.blocks.extend(pair(before, after))
        self.blocks.extend(pair(widths[-1], widths[-1]))
        self.downs = nn.ModuleList(
            nn.Conv1d(width, width, 3, stride=2, padding=1) for width in widths[:-1]
        )
        self.ups = nn.ModuleList()
        for below, width in zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True):
            self.ups.append(nn.ConvTranspose1d(below, width, 4, stride=2, padding=1))
            self.blocks.extend(pair(2 * width, width))
        self.last = _ConvBlock(widths[0], dim, kernel_size, groups)
        self.output = nn.Conv1d(dim, channels, 1)

    def forward(
        self, x: Tensor, step: Tensor, action: Tensor, return_to_go: Tensor, conditioned: Tensor
    ) -> Tensor:
        """Predicts the diffusion target.

        Args:
          x: [B, T, inputs] noisy tokens; any T (padded inside to a multiple of the strides).
          step: [B] diffusion step.
          action: [B, A].
          return_to_go: [B].
          conditioned: [B], 1 where the return-to-go is given, 0 where it is null.

        Returns:
          [B, T, channels] float32.
        """
        # All residual blocks begin with the same Mish of the embedding.
        embedding = F.mish(self._embed(step, action, return_to_go, conditioned))
        length = x.shape[1]
        known = torch.cat([x[:, 0, : self.channels], action], dim=-1)
        x = torch.cat([x, known[:, None].expand(-1, length, -1)], dim=-1)
        x = F.pad(x.transpose(1, 2), (0, -length % self.stride))
        blocks = iter(self.blocks)

        def residual(x: Tensor, count: int) -> Tensor:
            for _ in range(count):
                x = next(blocks)(x, embedding)
            return x

        skips = []
        for down in self.downs:
            x = residual(x, 2)
            skips.append(x)
            x = down(x)
        x = residual(x, 4)  # the last level, and the middle
        for up in self.ups:
            x = residual(torch.cat([up(x), skips.pop()], dim=1), 2)
        return self.output(self.last(x))[..., :length].transpose(1, 2).float()

    def _embed(
        self, step: Tensor, action: Tensor, return_to_go: Tensor, conditioned: Tensor
    ) -> Tensor:
        of_step = self.of_step(_sinusoids(step, self.frequencies))
        of_return = self.of_return(return_to_go[:, None]) * conditioned[:, None]
        return torch.cat([of_step, of_return, self.of_action(action)], dim=-1)

    def flax_children(self) -> dict[str, nn.Module]:
        """Flax's names of the parts."""
        lists: dict[str, Iterable[nn.Module]] = {
            "_MishMlp": [self.of_step, self.of_return, self.of_action],
            "_ResidualBlock": self.blocks,
            "TemporalConv": self.downs,
            "TemporalUpsample": self.ups,
            "_ConvBlock": [self.last],
            "Dense": [self.output],
        }
        return {
            f"{kind}_{index}": part
            for kind, parts in lists.items()
            for index, part in enumerate(parts)
        }


class _ResNetBlock(nn.Module):
    """See `temporal_resnet._Block`."""

    def __init__(self, width: int, condition_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.hidden = nn.Linear(3 * width, width)
        self.condition = nn.Linear(condition_size, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """[B, T, width], [B, condition_size] -> [B, T, width]."""
        padded = F.pad(self.norm(x), (0, 0, 1, 1))
        neighbours = torch.cat([padded[:, :-2], padded[:, 1:-1], padded[:, 2:]], dim=-1)
        hidden = self.hidden(neighbours) + self.condition(condition)[:, None]
        return x + self.out(F.mish(hidden))

    def flax_children(self) -> dict[str, nn.Module]:
        return dict(self.named_children())


class TemporalResNet(nn.Module):
    """The residual network of temporal convolutions; see `temporal_resnet`.

    Args:
      tokens: T, of a window.
      inputs: channels of a token that the network sees.
      channels: channels of a predicted token, the first ones of an input token.
      action_size: A.
      width: units of a token in every layer.
      blocks: residual blocks.
    """

    def __init__(
        self,
        tokens: int,
        inputs: int,
        channels: int,
        action_size: int,
        *,
        width: int,
        blocks: int,
    ):
        super().__init__()
        self.channels = channels
        known = channels + action_size
        self.register_buffer("frequencies", _frequencies(width), persistent=False)
        self.of_step = _MishMlp(width, width, width)
        self.of_return = _MishMlp(1, width, width)
        self.first = nn.Linear(inputs, width)
        self.known = nn.Linear(known, width)
        self.position = nn.Parameter(torch.zeros(tokens - 1, width))
        self.blocks = nn.ModuleList(_ResNetBlock(width, width + known) for _ in range(blocks))
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.output = nn.Linear(width, channels)

    def forward(
        self, x: Tensor, step: Tensor, action: Tensor, return_to_go: Tensor, conditioned: Tensor
    ) -> Tensor:
        """Predicts the diffusion target; see `TemporalUNet`. The output of token 0 is 0."""
        of_step = self.of_step(_sinusoids(step, self.frequencies))
        of_return = self.of_return(return_to_go[:, None]) * conditioned[:, None]
        known = torch.cat([x[:, 0, : self.channels], action], dim=-1)
        condition = torch.cat([F.mish(of_step + of_return), known], dim=-1)
        hidden = self.first(x[:, 1:]) + self.known(known)[:, None] + self.position
        for block in self.blocks:
            hidden = block(hidden, condition)
        return F.pad(self.output(self.norm(hidden)).float(), (0, 0, 1, 0))

    def flax_parameters(self) -> dict[str, nn.Parameter]:
        """Flax's name of the positions."""
        return {"position": self.position}

    def flax_children(self) -> dict[str, nn.Module]:
        """Flax's names of the parts."""
        blocks = {f"block_{index}": block for index, block in enumerate(self.blocks)}
        embedding = _Embedding(self.of_step, self.of_return)
        parts = {"embedding": embedding, "in": self.first, "known": self.known}
        return {**parts, **blocks, "norm": self.norm, "out": self.output}


class _Embedding(nn.Module):
    """The flax names of the two MLPs that `embeddings.ConditionEmbedding` adds."""

    def __init__(self, of_step: _MishMlp, of_return: _MishMlp):
        super().__init__()
        self.of_step, self.of_return = of_step, of_return

    def flax_children(self) -> dict[str, nn.Module]:
        return {
            "step_in": self.of_step[0],
            "step_out": self.of_step[2],
            "return_in": self.of_return[0],
            "return_out": self.of_return[2],
        }


def _frequencies(size: int) -> Tensor:
    """See `embeddings.sinusoidal_embedding`."""
    half = size // 2
    return torch.exp(-np.log(10_000.0) * torch.arange(half) / (half - 1))


def _sinusoids(step: Tensor, frequencies: Tensor) -> Tensor:
    angles = step[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


# --- parameters ---------------------------------------------------------------------------


def count_parameters(module: nn.Module) -> int:
    """Number of scalars in a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def copy_parameters(module: nn.Module, params: Any) -> None:
    """Loads a flax network's parameters into its twin.

    Args:
      module: the twin; an `nn.ModuleDict` of twins is loaded by name.
      params: {"params": tree of arrays} of a network of `dawm_jax.networks`, or several by name.

    Raises:
      ValueError: the networks differ in their number of parameters, or in a shape.
    """
    if isinstance(module, nn.ModuleDict):
        for name, part in module.items():
            copy_parameters(part, params[name])
        return
    tree = params["params"]
    sizes = sum(np.size(leaf) for leaf in jax.tree.leaves(tree))
    if sizes != count_parameters(module):
        raise ValueError(f"parameters: expected {count_parameters(module)}, got {sizes}")
    with torch.no_grad():
        _copy(module, tree)


def _copy(module: Any, tree: Any) -> None:
    if "scale" in tree:  # a normalisation
        _fill(module.weight, tree["scale"])
        _fill(module.bias, tree["bias"])
    elif isinstance(module, nn.Linear | nn.Conv1d | nn.ConvTranspose1d):
        kernel = np.asarray(tree["kernel"])  # [(taps,) in, out]
        if isinstance(module, nn.Linear):
            kernel = kernel.T
        elif isinstance(module, nn.Conv1d):  # with one tap it is a dense layer in flax
            kernel = kernel.reshape(-1, *kernel.shape[-2:]).transpose(2, 1, 0)
        else:
            kernel = kernel.transpose(1, 2, 0)
        _fill(module.weight, kernel)
        _fill(module.bias, tree["bias"])
    elif isinstance(module, Critics):
        for index, member in enumerate(module.members):
            _copy(member, jax.tree.map(lambda leaf, index=index: leaf[index], tree["VmapMlp_0"]))
    else:
        own = module.flax_parameters() if hasattr(module, "flax_parameters") else {}
        for name, parameter in own.items():
            _fill(parameter, tree[name])
        for name, child in module.flax_children().items():
            _copy(child, tree[name])


def _fill(parameter: Any, values: Any) -> None:
    array = np.array(values, np.float32)  # a copy: PyTorch needs writable memory
    if array.shape != tuple(parameter.shape):
        raise ValueError(f"shape: expected {tuple(parameter.shape)}, got {array.shape}")
    parameter.copy_(torch.from_numpy(array))
