"""A guide as it is printed: what it is over, its layers in a line each, and how many numbers it trains."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import cast

from torch import Size, nn

from ..checks import counted
from ..flows.whitened import Whitened
from ..layers import Rescaled
from ..layers.base import Chain, Layer
from ..model.noncentered import Center

#: Columns and lines that a printed guide takes at most, and sites that it names.
WIDTH, MOST_LINES, MOST_SITES = 100, 24, 12
MARGIN = " " * 2
#: Sites whose centering is told by name.
MOST_SHOWN = 8


def printed(name: str, about: str, shapes: dict[str, Size], layer: Rescaled | None, encoder: nn.Module | None) -> str:
    """A guide in words.

    :param name: of its class.
    :param about: its structure, as ``extra_repr`` has it; empty before its first call.
    :param shapes: of the sites.
    :param layer: its flow and its end.
    :param encoder: of its rows, if it has one.
    """
    if not about or layer is None:
        return f"{name}, which knows its latents and layers after its first call, as guide(*args) or by VI.run(*args)"
    whole = cast(Whitened, layer.layer)
    head = textwrap.fill(f"{name}: {about}", 2 * WIDTH, subsequent_indent=MARGIN)
    found = [head, *_part("sites", textwrap.wrap(_sites(shapes), WIDTH))]
    flow = lines_of(whole.flow)
    if len(flow) > MOST_LINES:
        flow = [*flow[:MOST_LINES], f"... and {len(flow) - MOST_LINES} more lines"]
    found += _part("flow", flow) + _part("end", lines_of(whole.end)[:MOST_LINES])
    found += [] if encoder is None else _part("encoder", [network(encoder)])
    sizes = {"the flow": _size(whole.flow), "the end": _size(whole.end)}
    sizes |= {} if encoder is None else {"the encoder": _size(encoder)}
    parts = ", ".join(f"{size:,} of {part}" for part, size in sizes.items())
    return "\n".join(
        [*found, f"{MARGIN}{sum(sizes.values()):,} parameters: {parts}; print(guide.layer) has all modules"]
    )


def lines_of(layer: Layer) -> list[str]:
    """The layers of a flow in a line each, those that are repeated only once.

    Example::

        >>> from pyro_nflows.flows import planar, realnvp
        >>> print("\\n".join(lines_of(planar(3, num_layers=4))))
        4 x Planar(3)
        >>> print("\\n".join(lines_of(realnvp(4, num_layers=4))))
        2 x
          Coupling(4, Affine(bound=10.0), flip=False, MLP 2-32-32)
          Coupling(4, Affine(bound=10.0), flip=True, MLP 2-32-32)
          Permutation(4)
    """
    if isinstance(layer, Chain):
        parts = [_flat(part) for part in layer]
        return folded([part for group in parts for part in group])
    inner = [part for child in layer.children() for part in _layers_in(child)]
    networks = folded([[network(child)] for child in layer.children() if not _layers_in(child) and _is_shown(child)])
    own = [] if layer.extra_repr() == "" else [layer.extra_repr()]
    within = folded([lines_of(part) for part in inner])
    said = ", ".join([*own, *networks])
    if len(within) == 1 and len(said) + len(within[0]) < WIDTH - len(type(layer).__name__):
        return [f"{type(layer).__name__}({', '.join([*within, *([said] if said else [])])})"]
    return [f"{type(layer).__name__}({said})", *(MARGIN + line for line in within)]


def folded(blocks: Sequence[list[str]]) -> list[str]:
    """Lines of consecutive blocks, in which what is repeated stands once behind its number.

    Example::

        >>> folded([["a"], ["a"], ["b"], ["c"], ["b"], ["c"], ["d"]])
        ['2 x a', '2 x', '  b', '  c', 'd']
    """
    lines: list[str] = []
    start = 0
    while start < len(blocks):
        period, times = _repetition(blocks, start)
        group = [line for block in blocks[start : start + period] for line in block]
        if times == 1:
            lines += group
        elif len(group) == 1:
            lines.append(f"{times} x {group[0]}")
        else:
            lines += [f"{times} x", *(MARGIN + line for line in group)]
        start += period * times
    return lines


def _repetition(blocks: Sequence[list[str]], start: int) -> tuple[int, int]:
    """How many blocks from here on are repeated together, and how often: those that shorten most."""
    best = (1, 1)
    for period in range(1, (len(blocks) - start) // 2 + 1):
        group, times = blocks[start : start + period], 1
        while blocks[start + times * period : start + (times + 1) * period] == group:
            times += 1
        if period * (times - 1) > best[0] * (best[1] - 1):
            best = (period, times)
    return best


def network(module: nn.Module) -> str:
    """A network in a few words: its class, and the widths of its layers where these follow each other.

    Example::

        >>> from pyro_nflows.nets.mlp import MLP
        >>> network(MLP(5, 2, (32, 32)))
        'MLP 5-32-32'
    """
    linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
    widths = [linear[0].in_features, *(part.out_features for part in linear)] if linear else []
    if any(a.out_features != b.in_features for a, b in zip(linear, linear[1:])) or len(widths) > 8:
        widths = []
    return " ".join([type(module).__name__, *(["-".join(map(str, widths))] if widths else [])])


def _flat(layer: Layer) -> list[list[str]]:
    return [block for part in layer for block in _flat(part)] if isinstance(layer, Chain) else [lines_of(layer)]


def _layers_in(module: nn.Module) -> list[Layer]:
    """Layers that a child is, or is a list of."""
    if isinstance(module, Layer):
        return [module]
    return [part for part in module if isinstance(part, Layer)] if isinstance(module, nn.ModuleList) else []


def _is_shown(module: nn.Module) -> bool:
    """Whether a child of a layer is a network: something with parameters that is no mere list of them."""
    return not isinstance(module, nn.ModuleDict | nn.ModuleList) and any(True for _ in module.parameters())


def _sites(shapes: dict[str, Size]) -> str:
    shown = [f"{name} {tuple(shape)}" for name, shape in list(shapes.items())[:MOST_SITES]]
    rest = len(shapes) - len(shown)
    return ", ".join([*shown, *([f"and {counted(rest, 'more site')}"] if rest else [])])


def _part(title: str, lines: Sequence[str]) -> list[str]:
    return [f"{MARGIN}{title if not i else '':<9}{line}" for i, line in enumerate(lines)]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shown(centers: Mapping[str, Center]) -> list[str]:
    """How centered each of some sites is, in words.

    Example::

        >>> shown({"a": Center(torch.tensor(0.0)), "b": Center(torch.tensor([0.1, 0.85])), "c": Center(torch.ones(3))})
        ['a non-centered', 'b centered by 0.10 to 0.85', 'c centered']
        >>> from pyro_nflows.model.noncentered import ScaleSite
        >>> shown({"eta": Center(torch.ones(3), (ScaleSite("tau", 1.0), ScaleSite("variance", 0.5)))})
        ['eta * tau * variance^0.5 centered']
    """
    if len(centers) > MOST_SHOWN:
        rest = f"{len(centers) - MOST_SHOWN:,} more that guide.centering has"
        return [*shown(dict(list(centers.items())[:MOST_SHOWN])), rest]
    products = {name: " * ".join([name, *map(str, center.scales)]) for name, center in centers.items()}
    return [f"{products[name]} {_by(float(c.min()), float(c.max()))}" for name, (c, _) in centers.items()]


def _by(least: float, most: float) -> str:
    if least == most:
        return {0.0: "non-centered", 1.0: "centered"}.get(least, f"centered by {least:.2f}")
    return f"centered by {least:.2f} to {most:.2f}"
