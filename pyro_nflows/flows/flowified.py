"""Neural networks made flows."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ..checks import Size, check_sizes
from ..layers import FlowifiedActivation, FlowifiedConv, FlowifiedLinear
from ..layers.base import Chain, Inverse, Layer


def flowified(
    latent_dim: int,
    num_layers: int = 4,
    extra_dims: int = 4,
    hidden_dims: Sequence[int] = (32, 32),
) -> Chain:
    """A perceptron made a flow: dense layers and round leaky rectifiers, as many outputs as inputs.

    Its ``num_layers`` hidden layers are ``extra_dims`` wider than the latents. The width comes from noise; a network
    with ``hidden_dims`` accounts for what the last layer drops. With ``extra_dims=0`` it is a bijection.

    Example::

        >>> flowified(3, num_layers=2).exactness.name, flowified(3, extra_dims=0).exactness.name
        ('PROPER', 'EXACT')
    """
    check_sizes("flowified", latent_dim=latent_dim, num_layers=num_layers)
    if isinstance(extra_dims, bool) or not isinstance(extra_dims, int) or extra_dims < 0:
        raise ValueError(f"flowified: extra_dims must be 0 or a positive integer, got {extra_dims!r}")
    width = latent_dim + extra_dims
    layers: list[Layer] = []
    for i in range(num_layers):
        layers += [FlowifiedLinear(width if i else latent_dim, width), FlowifiedActivation(width, smoothness=1.0)]
    return Chain(*layers, FlowifiedLinear(width, latent_dim, hidden_dims=hidden_dims))


def flowify(
    network: nn.Sequential,
    shape: Size | None = None,
    *,
    hidden_dims: Sequence[int] = (32, 32),
    noise_scale: float = 0.1,
    smoothness: float = 0.0,
) -> Inverse:
    """A network from data to a code, made a density of the data: flowification.

    The network is the flow's *inverse*, data to base: without noise, ``flow.inverse(x)[0]`` is ``network(x)``. Drawing
    runs it backwards, from a standard normal code. Its weights are copied, and train with the flow.
    ``FlowDistribution(flow).log_prob(x)`` is exact where no layer is wider than the one before; where one is, noise
    fills it, and the mean is a lower bound.

    :param network: an ``nn.Sequential`` of ``Linear``, ``Conv2d``, ``LeakyReLU``, ``PReLU``, ``Flatten``, ``Identity``
        and further ``Sequential``.
    :param shape: the data's dimension, or an image's ``(C, H, W)``; needed unless the network begins with ``Linear``.
        To the flow, images are flat vectors.
    :param hidden_dims: widths of the networks that say what layers drop.
    :param noise_scale: standard deviation, at the start, of the noise that layers add.
    :param smoothness: by how much to round the leaky rectifiers' corners. 0 leaves the network as it is; 1 or so trains
        better, for the corners' likelihood has jumps.
    :raises ValueError: if a module cannot be made a flow, or its sizes do not fit.

    Example::

        >>> network = nn.Sequential(nn.Linear(6, 4), nn.LeakyReLU(0.5), nn.Linear(4, 2))
        >>> flow = flowify(network)
        >>> flow.input_dim, flow.output_dim
        (2, 6)
        >>> x = torch.randn(10, 6)
        >>> torch.allclose(flow.inverse(x)[0], network(x), atol=1e-3)
        True
    """
    modules = _flat(network)
    shape = _first_shape(modules) if shape is None else shape
    options = _Options(tuple(hidden_dims), noise_scale, smoothness)
    layers: list[Layer] = []
    for module in modules:
        if isinstance(module, nn.Flatten):
            shape = _dim(shape)
        elif not isinstance(module, nn.Identity):
            layer, shape = _made(module)(module, shape, options)
            layers.append(layer)
    if not layers:
        raise ValueError("flowify: expected at least one layer, got a network without any")
    return Inverse(Chain(*layers))


class _Options(NamedTuple):
    """What :func:`flowify` was told about layers."""

    hidden_dims: tuple[int, ...]
    noise_scale: float
    smoothness: float


def _flat(network: nn.Module) -> list[nn.Module]:
    """The modules in order, without containers."""
    return [m for part in network for m in _flat(part)] if isinstance(network, nn.Sequential) else [network]


def _dim(shape: Size) -> int:
    return shape if isinstance(shape, int) else torch.Size(shape).numel()


def _first_shape(modules: Sequence[nn.Module]) -> int:
    first = next((module for module in modules if not isinstance(module, nn.Flatten | nn.Identity)), None)
    if not isinstance(first, nn.Linear):
        raise ValueError(
            "flowify: the shape of the data does not follow from a network that does not begin with nn.Linear; "
            "pass it: flowify(network, (C, H, W)), or flowify(network, dim)"
        )
    return first.in_features


def _linear(module: nn.Linear, shape: Size, options: _Options) -> tuple[Layer, Size]:
    if shape != module.in_features:
        hint = "" if isinstance(shape, int) else "; put nn.Flatten() before it"
        raise ValueError(f"flowify: {module} got data of shape {shape}{hint}")
    layer = FlowifiedLinear(module.in_features, module.out_features, hidden_dims=options.hidden_dims).to(module.weight)
    layer.assign(module.weight, module.bias, options.noise_scale)
    return layer, module.out_features


def _conv(module: nn.Conv2d, shape: Size, options: _Options) -> tuple[Layer, Size]:
    if isinstance(shape, int) or shape[0] != module.in_channels:
        raise ValueError(f"flowify: {module} got data of shape {shape}; pass flowify(network, (C, H, W))")
    sizes = [module.kernel_size, module.stride, module.padding]
    plain = module.dilation == (1, 1) and module.groups == 1 and module.padding_mode == "zeros"
    if not plain or any(isinstance(size, str) or size[0] != size[1] for size in sizes):
        raise ValueError(
            f"flowify: expected a convolution of square kernel, stride and padding (in numbers, with zeros), without "
            f"dilation and groups, got {module}"
        )
    kernel_size, stride, padding = (int(size[0]) for size in sizes)
    layer = FlowifiedConv(
        *(shape, module.out_channels, kernel_size, stride, padding),
        hidden_dims=options.hidden_dims,
        noise_scale=options.noise_scale,
    ).to(module.weight)
    layer.linear.assign(module.weight.flatten(1), module.bias, options.noise_scale)
    return layer, layer.output_shape


def _leaky(module: nn.LeakyReLU, shape: Size, options: _Options) -> tuple[Layer, Size]:
    layer = FlowifiedActivation(_dim(shape), module.negative_slope, smoothness=options.smoothness, trained=False)
    return layer, shape


def _prelu(module: nn.PReLU, shape: Size, options: _Options) -> tuple[Layer, Size]:
    return FlowifiedActivation(shape, module.weight, smoothness=options.smoothness).to(module.weight), shape


_Maker = Callable[[Any, Size, _Options], tuple[Layer, Size]]
_MAKERS: dict[type[nn.Module], _Maker] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.LeakyReLU: _leaky,
    nn.PReLU: _prelu,
}


def _made(module: nn.Module) -> _Maker:
    """What makes a layer of this kind of module."""
    if type(module) not in _MAKERS:
        hint = {
            nn.ReLU: "it forgets negative numbers, use nn.LeakyReLU",
            nn.Dropout: "leave it out",
            nn.Tanh: "its values fill a bounded interval only, use nn.LeakyReLU",
            nn.Sigmoid: "its values fill a bounded interval only, use nn.LeakyReLU",
        }.get(type(module), "build the flow from layers")
        names = ", ".join(kind.__name__ for kind in _MAKERS)
        raise ValueError(f"flowify: cannot make {module} a flow: {hint}. It takes {names}, Flatten and Identity")
    return _MAKERS[type(module)]
