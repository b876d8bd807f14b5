r"""The same flows by four libraries: ours, zuko, normflows and nflows.

All have the same number of layers, the same networks (two hidden layers, tanh; in couplings the second is SiLU where
the library lets one say so) and the same bins. Our networks' linear skip, which the others do not have, is left out;
``SKIP`` has our flows as they are by default, with it. What a library cannot be told stays its own: how a scale is
kept positive, and how coordinates are shuffled. Where its layers can only stretch or only shrink there is an
``ActNorm``, which it ships, at the data's end.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_nflows import FlowDistribution, recipes
from pyro_nflows.layer import Layer
from pyro_nflows.masked import MaskedMLP
from pyro_nflows.nets import MLP

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


class Net(nn.Sequential):
    """Our couplings' network without the skip; nflows and normflows hand it a context, which is None."""

    def __init__(self, inputs: int, outputs: int, width: int, kernels: tuple[int, int, int] | None = None):
        def layer(a: int, b: int, i: int) -> nn.Module:
            return nn.Linear(a, b) if kernels is None else nn.Conv2d(a, b, kernels[i], padding="same")

        last = nn.SiLU() if kernels is None else nn.Tanh()
        super().__init__(layer(inputs, width, 0), nn.Tanh(), layer(width, width, 1), last, layer(width, outputs, 2))
        nn.init.zeros_(self[-1].weight)
        nn.init.zeros_(self[-1].bias)

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        """Without a context."""
        return super().forward(x)


# ---- ours ---------------------------------------------------------------------------------------------------


def _ours(layer: Layer, skip: bool = False) -> Peer:
    for part in layer.modules():
        if isinstance(part, MLP | MaskedMLP) and not skip:
            part.skip = None
    return Peer(layer, layer, FlowDistribution(layer).log_prob)


RECIPES: dict[str, Callable[[int, int, int], Layer]] = {
    "MAF": lambda dim, num, width: recipes.maf(dim, num, (width, width)),
    "RealNVP": lambda dim, num, width: recipes.realnvp(dim, num, (width, width)),
    "spline": lambda dim, num, width: recipes.spline(dim, num, (width, width), BINS, BOUND),
    "Glow": lambda dim, num, width: recipes.glow(dim, num, (width, width)),
    "Glow, images": lambda dim, num, width: recipes.glow_image(SHAPE, 1, num, (width, width)),
}


def _by_recipe(name: str, skip: bool) -> Maker:
    return lambda *sizes: _ours(RECIPES[name](*sizes), skip)


OURS: dict[str, Maker] = {name: _by_recipe(name, skip=False) for name in RECIPES}
SKIP: dict[str, Maker] = {name: _by_recipe(name, skip=True) for name in RECIPES if name != "Glow, images"}

# ---- zuko ---------------------------------------------------------------------------------------------------


def _zuko(name: str, dim: int, num: int, width: int, **options: Any) -> Peer:
    from zuko import flows

    options |= {"transforms": num, "hidden_features": (width, width), "activation": nn.Tanh}
    flow = getattr(flows, name)(dim, **options)
    return Peer(flow, lambda z: flow().transform.inv(z), lambda x: flow().log_prob(x))


def _zuko_spline(dim: int, num: int, width: int) -> Peer:
    from zuko.transforms import MonotonicRQSTransform

    shapes = [(BINS,), (BINS,), (BINS - 1,)]
    return _zuko("NICE", dim, num, width, univariate=MonotonicRQSTransform, shapes=shapes)


ZUKO: dict[str, Maker] = {
    "MAF": lambda dim, num, width: _zuko("MAF", dim, num, width),
    "RealNVP": lambda dim, num, width: _zuko("RealNVP", dim, num, width),
    "spline": _zuko_spline,
}

# ---- nflows -------------------------------------------------------------------------------------------------


def _nflows(transforms: list[nn.Module], shape: tuple[int, ...]) -> Peer:
    from nflows.distributions.normal import StandardNormal
    from nflows.flows.base import Flow
    from nflows.transforms.base import CompositeTransform

    flow = Flow(CompositeTransform(transforms), StandardNormal(shape))
    return Peer(flow, flow._transform.inverse, flow.log_prob)


def _mask(dim: int, i: int) -> Tensor:
    first = torch.arange(dim) < dim // 2
    return (first if i % 2 else ~first).float() * 2 - 1


def _nflows_maf(dim: int, num: int, width: int) -> Peer:
    from nflows.transforms import MaskedAffineAutoregressiveTransform, ReversePermutation

    options = {"num_blocks": 1, "use_residual_blocks": False, "activation": torch.tanh}
    layers = [MaskedAffineAutoregressiveTransform(dim, width, **options) for _ in range(num)]
    return _nflows([part for layer in layers for part in (ReversePermutation(dim), layer)], (dim,))


def _nflows_realnvp(dim: int, num: int, width: int) -> Peer:
    from nflows.transforms import ActNorm, AffineCouplingTransform

    layers = [AffineCouplingTransform(_mask(dim, i), lambda a, b: Net(a, b, width)) for i in range(num)]
    return _nflows([ActNorm(dim), *layers], (dim,))


def _nflows_spline(dim: int, num: int, width: int) -> Peer:
    from nflows.transforms import PiecewiseRationalQuadraticCouplingTransform as Spline

    options = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
    return _nflows([Spline(_mask(dim, i), lambda a, b: Net(a, b, width), **options) for i in range(num)], (dim,))


def _nflows_glow(dim: int, num: int, width: int) -> Peer:
    from nflows.transforms import ActNorm, AffineCouplingTransform, LULinear

    parts: list[nn.Module] = []
    for i in range(num):
        coupling = AffineCouplingTransform(_mask(dim, i), lambda a, b: Net(a, b, width))
        parts += [ActNorm(dim), LULinear(dim), coupling]
    return _nflows(parts, (dim,))


def _nflows_images(dim: int, num: int, width: int) -> Peer:
    from nflows.transforms import ActNorm, AffineCouplingTransform, OneByOneConvolution, SqueezeTransform

    channels = 4 * SHAPE[0]
    parts: list[nn.Module] = [SqueezeTransform()]
    for i in range(num):
        net = AffineCouplingTransform(_mask(channels, i), lambda a, b: Net(a, b, width, (3, 1, 3)))
        parts += [ActNorm(channels), OneByOneConvolution(channels), net]
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
    import normflows as nf

    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(shape, trainable=False), parts)
    return Peer(flow, flow.forward, flow.log_prob)


def _swapped(part: Any) -> Any:
    """Its autoregressive and spline layers go from data to base when called forward."""
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


def _normflows_maf(dim: int, num: int, width: int) -> Peer:
    import normflows as nf

    options = {"num_blocks": 1, "use_residual_blocks": False, "activation": torch.tanh}
    parts: list[Any] = []
    for _ in range(num):
        reverse = nf.flows.Permute(dim)
        reverse.perm = reverse.inv_perm = torch.arange(dim).flip(0)
        parts += [_swapped(nf.flows.MaskedAffineAutoregressive(dim, width, **options)), reverse]
    return _normflows([*parts, nf.flows.ActNorm((dim,))], dim)


def _normflows_coupling(dim: int, width: int) -> Any:
    import normflows as nf

    return nf.flows.AffineCouplingBlock(Net((dim + 1) // 2, dim // 2 * 2, width))


def _normflows_realnvp(dim: int, num: int, width: int) -> Peer:
    import normflows as nf

    return _normflows(
        [p for _ in range(num) for p in (_normflows_coupling(dim, width), nf.flows.Permute(dim, "swap"))], dim
    )


def _normflows_spline(dim: int, num: int, width: int) -> Peer:
    from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling as Spline

    options = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
    parts = [_swapped(Spline(_mask(dim, i), lambda a, b: Net(a, b, width), **options)) for i in range(num)]
    return _normflows(parts, dim)


def _normflows_glow(dim: int, num: int, width: int) -> Peer:
    import normflows as nf

    parts: list[Any] = []
    for _ in range(num):
        parts += [_normflows_coupling(dim, width), nf.flows.InvertibleAffine(dim), nf.flows.ActNorm((dim,))]
    return _normflows(parts, dim)


def _normflows_images(dim: int, num: int, width: int) -> Peer:
    import normflows as nf

    channels = 4 * SHAPE[0]
    blocks = [nf.flows.GlowBlock(channels, width, scale_map="exp") for _ in range(num)]
    for block in blocks:
        block.flows[0].flows[1].param_map = Net(channels // 2, channels, width, (3, 1, 3))
    flow = _normflows([*blocks, nf.flows.Squeeze()], (channels, SHAPE[1] // 2, SHAPE[2] // 2))
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
