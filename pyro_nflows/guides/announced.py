"""A module's parameters, announced to Pyro in each call of a guide."""

from collections.abc import Mapping
from typing import cast

import pyro
from pyro.params.param_store import param_with_module_name
from torch import nn

from ..nets.views import Held, parameters_in


def announce(owner: str, prefix: str, module: nn.Module) -> None:
    """Make each parameter a ``pyro.param``; what the param store holds takes its place, wherever the module has it.

    It is ``pyro.module(prefix, module, update_module_params=True)`` in less time, and for parameters that stand in
    several places of the module.

    :param owner: the guide's class, for errors.
    :param prefix: of the names in the param store.
    :raises ValueError: if the param store holds a parameter of another shape under one of the names.

    Example::

        >>> pyro.clear_param_store()
        >>> announce("AutoFlow", "guide.layer", nn.Linear(2, 1))
        >>> list(pyro.get_param_store())
        ['guide.layer$$$weight', 'guide.layer$$$bias']
    """
    found = {param_with_module_name(prefix, name): held for name, held in parameters_in(module).items()}
    _check_shapes(owner, found)
    if not all(held.parameter.requires_grad for held in found.values()):
        pyro.module(prefix, module, update_module_params=True)  # with Pyro's warning about those that do not train
    for name, held in found.items():
        if held.parameter.requires_grad:
            kept = pyro.param(name, held.parameter)
            for place in held.places:
                if place.part._parameters[place.key] is not kept:
                    place.part._parameters[place.key] = cast(nn.Parameter, kept)


def _check_shapes(owner: str, found: Mapping[str, Held]) -> None:
    """The param store may hold another guide's parameters of the same name: fine only if their shapes fit."""
    stored = pyro.get_param_store()._params
    for name, (param, _) in found.items():
        there = stored.get(name)
        if there is not None and there is not param and there.shape != param.shape:
            raise ValueError(
                f"{owner}: the param store holds '{name}' of shape {tuple(there.shape)} from another guide, expected "
                f"{tuple(param.shape)}; call pyro.clear_param_store() before making a new guide"
            )
