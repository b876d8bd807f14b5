r"""The same flows by four libraries: ours, zuko, normflows and nflows.

All have the same number of layers, the same order of halves and shuffles, the same networks (two hidden layers, tanh;
in couplings of vectors the second is SiLU), the same bins, and heads that start at zero. Splines go from the data to
the base. With :func:`~benchmarks.peer_parts.same_scale`, given the same numbers, all are the same density
(``tests/benchmarks/test_peers.py``), but for: a soft bound of log-scales (ours and zuko's), zuko's softer bins, whether
a MAF shifts before it scales, and how a linear layer keeps its triangles.

Our networks' linear skip, which the others do not have, is left out; ``SKIP`` has our flows as they are by default,
with it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peer_parts import (
    BINS,
    BOUND,
    SHAPE,
    Maker,
    Net,
    Peer,
    from_permutation,
    moved,
    spline_net,
    steps_of,
    swapped,
    zeroed,
)
from pyro_nflows import FlowDistribution, flows
from pyro_nflows.layers.base import Layer
from pyro_nflows.nets.masked import MaskedMLP
from pyro_nflows.nets.mlp import MLP

# ---- ours ---------------------------------------------------------------------------------------------------


def _ours(layer: Layer, skip: bool = False) -> Peer:
    for part in layer.modules():
        if isinstance(part, MLP | MaskedMLP) and not skip:
            part.skip = None
    return Peer(layer, layer, FlowDistribution(layer).log_prob)


FLOWS: dict[str, Callable[[int, int, int], Layer]] = {
    "MAF": lambda dim, num, width: flows.maf(dim, num, (width, width)),
    "RealNVP": lambda dim, num, width: flows.realnvp(dim, num, (width, width)),
    "spline": lambda dim, num, width: flows.spline(dim, num, (width, width), BINS, BOUND, inverted=True),
    "Glow": lambda dim, num, width: flows.glow(dim, num, (width, width)),
    "Glow, images": lambda dim, num, width: flows.glow_image(SHAPE, 1, num, (width, width)),
}


def _by_name(name: str, skip: bool) -> Maker:
    return lambda *sizes: _ours(FLOWS[name](*sizes), skip)


OURS: dict[str, Maker] = {name: _by_name(name, skip=False) for name in FLOWS}
SKIP: dict[str, Maker] = {name: _by_name(name, skip=True) for name in FLOWS if name != "Glow, images"}

# ---- zuko ---------------------------------------------------------------------------------------------------


def _zuko(transforms: list[Any], dim: int) -> Peer:
    from zuko.distributions import DiagNormal
    from zuko.lazy import Flow, UnconditionalDistribution

    base = UnconditionalDistribution(DiagNormal, loc=torch.zeros(dim), scale=torch.ones(dim), buffer=True)
    for transform in transforms:
        if hasattr(transform, "hyper"):
            zeroed(transform.hyper[-1])
    flow = Flow(transforms, base)
    return Peer(flow, lambda z: flow().transform.inv(z), lambda x: flow().log_prob(x))


def _zuko_maf(dim: int, num: int, width: int) -> Peer:
    from zuko.flows import MAF

    flow = MAF(dim, transforms=num, hidden_features=(width, width), activation=nn.Tanh)
    return _zuko(list(flow.transform.transforms), dim)


def _zuko_coupling(dim: int, flip: bool, width: int, **options: Any) -> Any:
    from zuko.flows import GeneralCouplingTransform

    options |= {"hidden_features": (width, width), "activation": nn.Tanh}
    coupling = GeneralCouplingTransform(dim, mask=~moved(dim, flip), **options)
    coupling.hyper[3] = nn.SiLU()
    return coupling


def _zuko_shuffle(order: Tensor | None) -> list[Any]:
    from zuko.lazy import UnconditionalTransform
    from zuko.transforms import PermutationTransform

    return [] if order is None else [UnconditionalTransform(PermutationTransform, order, buffer=True)]


def _zuko_realnvp(dim: int, num: int, width: int) -> Peer:
    steps = steps_of(dim, num)
    return _zuko([p for order, flip in steps for p in (*_zuko_shuffle(order), _zuko_coupling(dim, flip, width))], dim)


def _zuko_spline(dim: int, num: int, width: int) -> Peer:
    from zuko.transforms import MonotonicRQSTransform

    options = {"univariate": MonotonicRQSTransform, "shapes": [(BINS,), (BINS,), (BINS - 1,)]}
    parts = []
    for order, flip in reversed(steps_of(dim, num)):
        parts.append(_zuko_coupling(dim, flip, width, **options))
        parts += _zuko_shuffle(None if order is None else order.argsort())
    return _zuko(parts, dim)


ZUKO: dict[str, Maker] = {"MAF": _zuko_maf, "RealNVP": _zuko_realnvp, "spline": _zuko_spline}

# ---- nflows -------------------------------------------------------------------------------------------------


def _nflows(transforms: list[nn.Module], shape: tuple[int, ...]) -> Peer:
    from nflows.distributions.normal import StandardNormal
    from nflows.flows.base import Flow
    from nflows.transforms.base import CompositeTransform

    flow = Flow(CompositeTransform(transforms), StandardNormal(shape))
    return Peer(flow, flow._transform.inverse, flow.log_prob)


def _nflows_maf(dim: int, num: int, width: int) -> Peer:
    from nflows.transforms import MaskedAffineAutoregressiveTransform, ReversePermutation

    options = {"num_blocks": 1, "use_residual_blocks": False, "activation": torch.tanh}
    layers = [MaskedAffineAutoregressiveTransform(dim, width, **options) for _ in range(num)]
    for layer in layers:
        zeroed(layer.autoregressive_net.final_layer)
    return _nflows([part for layer in layers for part in (layer, ReversePermutation(dim))][:-1], (dim,))


def _nflows_coupling(dim: int, flip: bool, net: Callable[[int, int], Net]) -> Any:
    from nflows.transforms import AffineCouplingTransform

    return AffineCouplingTransform(moved(dim, flip).float(), net)


def _nflows_shuffle(order: Tensor | None) -> list[Any]:
    from nflows.transforms import Permutation

    return [] if order is None else [Permutation(order)]


def _nflows_realnvp(dim: int, num: int, width: int) -> Peer:
    parts = []
    for order, flip in steps_of(dim, num):
        parts += [*_nflows_shuffle(order), _nflows_coupling(dim, flip, lambda a, b: Net(a, b, width))]
    return _nflows(parts, (dim,))


def _nflows_spline(dim: int, num: int, width: int) -> Peer:
    from nflows.transforms import PiecewiseRationalQuadraticCouplingTransform as Spline

    options = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
    parts = []
    for order, flip in reversed(steps_of(dim, num)):
        parts.append(Spline(moved(dim, flip).float(), lambda a, b: spline_net(a, b, width), **options))
        parts += _nflows_shuffle(None if order is None else order.argsort())
    return _nflows(parts, (dim,))


def _nflows_glow(dim: int, num: int, width: int) -> Peer:
    from nflows.transforms import ActNorm, LULinear

    parts: list[Any] = []
    for order, flip in steps_of(dim, num):
        coupling = _nflows_coupling(dim, flip, lambda a, b: Net(a, b, width))
        parts += [ActNorm(dim), LULinear(dim), *_nflows_shuffle(order), coupling]
    return _nflows(parts, (dim,))


def _nflows_images(dim: int, num: int, width: int) -> Peer:
    from nflows.transforms import ActNorm, OneByOneConvolution, Permutation, SqueezeTransform

    channels = 4 * SHAPE[0]
    parts: list[Any] = [SqueezeTransform()]
    for order, flip in steps_of(channels, num):
        mix = OneByOneConvolution(channels)
        mix.permutation = Permutation(torch.arange(channels) if order is None else order)
        coupling = _nflows_coupling(channels, flip, lambda a, b: Net(a, b, width, (3, 1, 3)))
        parts += [ActNorm(channels), mix, coupling]
    flow = _nflows(parts, (channels, SHAPE[1] // 2, SHAPE[2] // 2))
    base = (-1, channels, SHAPE[1] // 2, SHAPE[2] // 2)
    return Peer(flow.module, lambda z: flow.sample(z.view(base)), lambda x: flow.log_prob(x.view(-1, *SHAPE)))


NFLOWS: dict[str, Maker] = {
    "MAF": _nflows_maf,
    "RealNVP": _nflows_realnvp,
    "spline": _nflows_spline,
    "Glow": _nflows_glow,
    "Glow, images": _nflows_images,
}

# ---- normflows ----------------------------------------------------------------------------------------------


def _normflows(parts: list[Any], shape: int | tuple[int, ...]) -> Peer:
    """Of parts from the data to the base; the library lists them the other way round."""
    import normflows as nf

    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(shape, trainable=False), parts[::-1])
    return Peer(flow, flow.forward, flow.log_prob)


def _normflows_shuffle(order: Tensor | None) -> list[Any]:
    import normflows as nf

    if order is None:
        return []
    shuffle = nf.flows.Permute(len(order))
    shuffle.perm, shuffle.inv_perm = order.argsort(), order
    return [shuffle]


def _normflows_maf(dim: int, num: int, width: int) -> Peer:
    import normflows as nf

    options = {"num_blocks": 1, "use_residual_blocks": False, "activation": torch.tanh}
    parts: list[Any] = []
    for _ in range(num):
        layer = nf.flows.MaskedAffineAutoregressive(dim, width, **options)
        zeroed(layer.autoregressive_net.final_layer)
        # Without residual blocks the library leaves out the first activation, which all others have.
        layer.autoregressive_net.initial_layer.register_forward_hook(lambda _, inputs, outputs: torch.tanh(outputs))
        parts += [swapped(layer), *_normflows_shuffle(torch.arange(dim).flip(0))]
    return _normflows(parts[:-1], dim)


def _normflows_coupling(dim: int, flip: bool, width: int, kernels: tuple[int, int, int] | None = None) -> Any:
    import normflows as nf

    net = Net(dim // 2, dim, width, kernels)
    return swapped(nf.flows.AffineCouplingBlock(net, split_mode="channel_inv" if flip else "channel"))


def _normflows_realnvp(dim: int, num: int, width: int) -> Peer:
    steps = steps_of(dim, num)
    parts = [p for order, flip in steps for p in (*_normflows_shuffle(order), _normflows_coupling(dim, flip, width))]
    return _normflows(parts, dim)


def _normflows_spline(dim: int, num: int, width: int) -> Peer:
    from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling as Spline

    options = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
    parts = []
    for order, flip in reversed(steps_of(dim, num)):
        parts.append(swapped(Spline(moved(dim, flip).float(), lambda a, b: spline_net(a, b, width), **options)))
        parts += _normflows_shuffle(None if order is None else order.argsort())
    return _normflows(parts, dim)


def _normflows_glow(dim: int, num: int, width: int) -> Peer:
    import normflows as nf

    parts: list[Any] = []
    for order, flip in steps_of(dim, num):
        mix = from_permutation(nf.flows.InvertibleAffine(dim), None if order is None else order.argsort())
        parts += [nf.flows.ActNorm((dim,)), mix, _normflows_coupling(dim, flip, width)]
    return _normflows(parts, dim)


def _normflows_images(dim: int, num: int, width: int) -> Peer:
    import normflows as nf

    channels = 4 * SHAPE[0]
    parts: list[Any] = [nf.flows.Squeeze()]
    for order, flip in steps_of(channels, num):
        mix = from_permutation(nf.flows.Invertible1x1Conv(channels, use_lu=True), order)
        coupling = _normflows_coupling(channels, flip, width, (3, 1, 3))
        parts += [nf.flows.ActNorm((channels, 1, 1)), mix, coupling]
    flow = _normflows(parts, (channels, SHAPE[1] // 2, SHAPE[2] // 2))
    base = (-1, channels, SHAPE[1] // 2, SHAPE[2] // 2)
    return Peer(flow.module, lambda z: flow.sample(z.view(base)), lambda x: flow.log_prob(x.view(-1, *SHAPE)))


NORMFLOWS: dict[str, Maker] = {
    "MAF": _normflows_maf,
    "RealNVP": _normflows_realnvp,
    "spline": _normflows_spline,
    "Glow": _normflows_glow,
    "Glow, images": _normflows_images,
}

LIBRARIES = {"pyro_nflows": OURS, "with skip": SKIP, "zuko": ZUKO, "nflows": NFLOWS, "normflows": NORMFLOWS}
