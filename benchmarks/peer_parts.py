r"""What the flows of :mod:`benchmarks.peer_flows` share: sizes, the order of couplings, networks, and their starts."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_nflows import flows
from pyro_nflows.layers import Coupling, Permutation
from pyro_nflows.nets.mlp import MLP, ConvNet, widen

Maker = Callable[[int, int, int], "Peer"]
BINS, BOUND = 8, 5.0
SHAPE = (2, 4, 4)


class Peer(NamedTuple):
    """A flow to train and to time."""

    module: nn.Module
    #: Base points to data.
    sample: Callable[[Tensor], Any]
    log_prob: Callable[[Tensor], Tensor]

    @property
    def num_params(self) -> int:
        """Numbers that train."""
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad)


def steps_of(dim: int, num: int) -> list[tuple[Tensor | None, bool]]:
    """Our couplings from the data to the base: a shuffle, or None, and which half moves then."""
    steps: list[tuple[Tensor | None, bool]] = []
    for layer in flows.couplings(dim, num, (1,)):
        if isinstance(layer, Permutation):
            steps[-1] = (layer.back, steps[-1][1])
        elif isinstance(layer, Coupling):
            steps.append((None, layer.flip))
    return steps[::-1]


def moved(dim: int, flip: bool) -> Tensor:
    """Which coordinates a coupling moves."""
    return (torch.arange(dim) < dim // 2) == flip


class Net(nn.Sequential):
    """Our couplings' network without the skip; nflows and normflows hand it a context, which is None."""

    def __init__(self, inputs: int, outputs: int, width: int, kernels: tuple[int, int, int] | None = None):
        def layer(a: int, b: int, i: int) -> nn.Module:
            return nn.Linear(a, b) if kernels is None else nn.Conv2d(a, b, kernels[i], padding="same")

        last = nn.SiLU() if kernels is None else nn.Tanh()
        super().__init__(layer(inputs, width, 0), nn.Tanh(), layer(width, width, 1), last, layer(width, outputs, 2))
        zeroed(self[-1])

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        """Without a context."""
        return super().forward(x)


def zeroed(head: nn.Module) -> None:
    """Start a network's last layer at zero."""
    for param in head.parameters():
        nn.init.zeros_(param)


def spline_net(inputs: int, outputs: int, width: int) -> Net:
    """A network whose bias makes nflows' and normflows' derivatives start at one."""
    net = Net(inputs, outputs, width)
    with torch.no_grad():
        net[-1].bias.view(-1, 3 * BINS - 1)[:, 2 * BINS :] = math.log(math.expm1(1 - 1e-3))
    return net


def same_scale(peer: Peer) -> Peer:
    """Make the scales of nflows' layers and of normflows' MAF exponentials, as the others' are.

    Their sigmoids and softplus alone change how much is learned in a given time.
    """
    for layer in peer.module.modules():
        if hasattr(layer, "_scale_and_shift"):
            layer._scale_and_shift = _scale_and_shift
        elif hasattr(layer, "_unconstrained_scale_and_shift"):
            layer._elementwise_forward, layer._elementwise_inverse = _affine, _affine_inverse
    return peer


def _scale_and_shift(params: Tensor) -> tuple[Tensor, Tensor]:
    shift, log_scale = params.chunk(2, 1)
    return log_scale.exp(), shift


def _affine(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    log_scale, shift = params.view(len(params), -1, 2).unbind(-1)
    return x * log_scale.exp() + shift, log_scale.sum(-1)


def _affine_inverse(y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    log_scale, shift = params.view(len(params), -1, 2).unbind(-1)
    return (y - shift) * (-log_scale).exp(), -log_scale.sum(-1)


def swapped(part: Any) -> Any:
    """A layer of normflows the other way round: from the data to the base when called forward."""
    from normflows.flows import Flow

    class Swapped(Flow):
        def __init__(self) -> None:
            super().__init__()
            self.part = part

        def forward(self, z: Tensor) -> Any:
            return self.part.inverse(z)

        def inverse(self, z: Tensor) -> Any:
            return self.part.forward(z)

    return Swapped()


def from_permutation(mix: Any, order: Tensor | None) -> Any:
    """Start a linear layer of normflows at a permutation, rather than at a random rotation."""
    with torch.no_grad():
        for param in (mix.L, mix.U, mix.log_S):
            param.zero_()
        mix.sign_S.fill_(1)
        mix.P.copy_(mix.eye if order is None else mix.eye[order])
    return mix


def networks(peer: Peer, library: str) -> list[list[nn.Module]]:
    """The linear layers of the couplings' networks, from the base to the data; our heads are not among them."""
    if library == "zuko":
        found = [list(part.hyper) for part in peer.module.transform.transforms if hasattr(part, "hyper")]
    else:
        parts = [part for part in peer.module.modules() if isinstance(part, Net | MLP | ConvNet)]
        found = [list(part if isinstance(part, Net) else part.hidden) for part in parts]
    layers = [[layer for layer in net if hasattr(layer, "weight")] for net in found]
    return layers[::-1] if library in ("zuko", "nflows") else layers


def share_start(peers: dict[str, Peer]) -> None:
    """Give the hidden layers of the first one's couplings to the others."""
    first, *others = peers
    for other in others:
        for ours, theirs in zip(networks(peers[first], first), networks(peers[other], other), strict=True):
            for a, b in zip(ours, theirs):
                b.load_state_dict(a.state_dict())


def start_masked(peer: Peer) -> None:
    """Start the hidden layers of another library's MAF as ours start, though not from the same numbers."""
    for name, layer in peer.module.named_modules():
        if name.endswith((".initial_layer", ".linear", ".hyper.0", ".hyper.2")):
            widen(layer)
