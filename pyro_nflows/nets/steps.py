r"""How large a parameter's steps are beside those of others: the more inputs a weight's unit adds up, the smaller.

Adam moves each number by about its step size, whatever the gradient's size. A unit that adds up :math:`n` inputs then
moves by up to :math:`n` times as much, and a row of a Gaussian's :math:`D \times D` factor by :math:`\sqrt D` times:
what trains ten dimensions blows up at two hundred.
"""

from torch import Tensor, nn

#: Units of at most so many inputs take full steps.
FULL = 32


def fan_in(module: nn.Module, name: str) -> int:
    """How many numbers of a module's parameter are added up in one number that it makes: 1 for vectors.

    A module whose parameter is no weight ``(out, in, ...)``, such as a stack of vectors, has a ``fan_in(name)`` itself.

    Example::

        >>> linear = nn.Linear(64, 3)
        >>> fan_in(linear, "weight"), fan_in(linear, "bias")
        (64, 1)
    """
    known = getattr(module, "fan_in", None)
    return known(name) if known else module.get_parameter(name).shape[1:].numel()


def step_factor(module: nn.Module, name: str) -> float:
    r""":math:`\min(1, 32 / n)` for a parameter of a module whose units add up :math:`n` inputs.

    Layers that have a ``step`` of their own multiply it by that.

    Example::

        >>> step_factor(nn.Linear(64, 3), "weight")
        0.5
    """
    step: float = getattr(module, "step", 1.0)
    return step * min(1.0, FULL / max(1, fan_in(module, name)))


def step_factors(module: nn.Module) -> list[float]:
    r"""For each parameter that trains, :math:`\min(1, 32 / n)` for :math:`n` inputs, in the order of ``parameters()``.

    Example::

        >>> step_factors(nn.Linear(64, 3))
        [0.5, 1.0]
    """
    factors: dict[Tensor, float] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in factors:
                factors[parameter] = step_factor(part, name)
    return list(factors.values())
