"""Views of modules: of the same parameters, or of tensors in their places, with the module itself left as it is."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from ..model.rows import Rows

_M = TypeVar("_M", bound=nn.Module)


def view_of(module: _M, **attributes: Any) -> _M:
    """A shallow copy of a module with some attributes of its own; parts and tensors are shared.

    Example::

        >>> linear = nn.Linear(2, 3)
        >>> view_of(linear, out_features=4).out_features, linear.out_features
        (4, 3)
    """
    view = copy.copy(module)
    view.__dict__.update(attributes)
    return view


def with_parameters(module: _M, tensors: Mapping[str, Tensor]) -> _M:
    """A view of a module with tensors in the places of its parameters; one that is in several places gets it in each.

    :param tensors: by the names of the parameters, as ``named_parameters`` has them.

    Example::

        >>> import torch
        >>> view = with_parameters(nn.Linear(1, 1), {"weight": torch.tensor([[2.0]]), "bias": torch.tensor([1.0])})
        >>> view(torch.tensor([3.0]))
        tensor([7.])
    """
    return _filled(module, {id(old): tensors[name] for name, old in module.named_parameters() if name in tensors})


def _filled(module: _M, tensors: Mapping[int, Tensor]) -> _M:
    own = {key: tensors.get(id(value), value) for key, value in module._parameters.items()}
    parts = {key: part and _filled(part, tensors) for key, part in module._modules.items()}
    return view_of(module, _parameters=own, _modules=parts)


def in_every_place(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors for the places of a module's parameters, by the names of all places that these have.

    A parameter may be held by several parts, and a part may stand in several places. Each part is named once, whatever
    the number of its places: ``torch.func.functional_call`` leaves a part that it is told of twice with the tensors of
    the call, and not with its own. Call it with ``tie_weights=False`` then.

    :param tensors: by the names of parameters, as ``named_parameters`` has them.

    Example::

        >>> linear = nn.Linear(2, 2)
        >>> list(in_every_place(nn.Sequential(linear, nn.Tanh(), linear), {"0.bias": torch.zeros(2)}))
        ['0.bias']
        >>> other = nn.Linear(2, 2)
        >>> other.bias = linear.bias
        >>> list(in_every_place(nn.Sequential(linear, other), {"0.bias": torch.zeros(2)}))
        ['0.bias', '1.bias']
    """
    found: dict[str, Tensor] = {}
    for name, held in parameters_in(module).items():
        if name in tensors:
            found |= {place.name: tensors[name] for place in held.places}
    return found


class Place(NamedTuple):
    """Where a parameter is: its whole name, the part that holds it, and its name there."""

    name: str
    part: nn.Module
    key: str


class Held(NamedTuple):
    """A parameter, and all of its places."""

    parameter: nn.Parameter
    places: list[Place]


def parameters_in(module: nn.Module) -> dict[str, Held]:
    """The parameters with their places, by the names and in the order of ``named_parameters``.

    A step of a loop asks several times, and ``named_parameters`` goes through generators within generators.

    Example::

        >>> a, b = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> b.bias = a.bias
        >>> {name: [place.name for place in held.places] for name, held in parameters_in(nn.Sequential(a, b)).items()}
        {'0.weight': ['0.weight'], '0.bias': ['0.bias', '1.bias'], '1.weight': ['1.weight']}
    """
    found: dict[int, Held] = {}
    _visit(module, "", found, set())
    return {held.places[0].name: held for held in found.values()}


def _visit(part: nn.Module, prefix: str, found: dict[int, Held], seen: set[int]) -> None:
    seen.add(id(part))
    for key, parameter in part._parameters.items():
        if parameter is not None:
            found.setdefault(id(parameter), Held(parameter, [])).places.append(Place(prefix + key, part, key))
    for key, inner in part._modules.items():
        if inner is not None and id(inner) not in seen:
            _visit(inner, f"{prefix}{key}.", found, seen)


def told(
    module: _M,
    name: str,
    tensor: Tensor,
    batch_shape: Callable[[nn.Module], torch.Size],
    check: Callable[[nn.Module], None],
) -> _M:
    """A view of a module with a tensor in every part that has a buffer for it; the module itself where none has.

    :param name: of the buffers.
    :param batch_shape: that the view of a part is to have.
    :param check: raises an error if a part cannot take the tensor.
    """
    takes = name in module._buffers
    if takes:
        check(module)
    parts = {key: part and told(part, name, tensor, batch_shape, check) for key, part in module._modules.items()}
    if not takes and all(part is module._modules[key] for key, part in parts.items()):
        return module
    buffers = {**module._buffers, name: tensor} if takes else module._buffers
    return view_of(module, _modules=parts, _buffers=buffers, batch_shape=batch_shape(module))


def on_rows(layer: _M, rows: Rows) -> _M:
    """A view of a layer over all rows of some plates, for chosen rows: a layer of the same numbers, looked up.

    What a row has of its own is looked up by the row's number, as a function of the layer's parameters. A part that has
    such numbers has a method of this name; parts that are layers of the whole flat latent become layers of what these
    rows hold.

    :param layer: of a flat latent, in the hierarchy that the rows are of.
    :param rows: the chosen rows.

    Example::

        >>> import torch
        >>> from pyro_nflows.layers import PlateAffine
        >>> from pyro_nflows.model.hierarchy import Hierarchy, Outline
        >>> whole = Hierarchy.of_outlines({"mu": Outline((), {}), "z": Outline((3,), {"groups": 0})})
        >>> layer = PlateAffine(whole, torch.tensor([0.0, 1.0, 2.0, 3.0]))
        >>> on_rows(layer, Rows.of(whole, {"groups": torch.tensor([2])}))(torch.zeros(2))[0].tolist()
        [0.0, 3.0]
    """
    return _on_rows(layer, rows, int(cast(Any, layer).input_dim))


def taken_rows(layer: _M, rows: Rows, **attributes: Any) -> _M:
    """A layer that holds a hierarchy and a table for each of some blocks, with what chosen rows have there.

    :param layer: its tables have a method ``taken``.
    :param rows: the chosen rows.
    :param attributes: others that the view is to have.
    """
    small, parts = rows.hierarchy, dict(layer._modules)
    for name, part in parts.items():
        if hasattr(part, "taken"):
            parts[name] = cast(Any, part).taken(rows.numbers)
    own = {"hierarchy": small, "sizes": small.sizes(), "input_dim": small.dim, "output_dim": small.dim}
    return view_of(layer, **own, _modules=parts, **attributes)


def _on_rows(module: _M, rows: Rows, dim: int) -> _M:
    own = getattr(module, "on_rows", None)
    if own is not None:
        return cast(_M, own(rows))
    parts = {name: part if part is None else _on_rows(part, rows, dim) for name, part in module._modules.items()}
    if hasattr(module, "transport") and getattr(module, "input_dim", None) == dim:
        view = view_of(module, _modules=parts, input_dim=rows.hierarchy.dim, output_dim=rows.hierarchy.dim)
        if hasattr(view, "count_noise"):  # of a chain: fewer rows may take less noise
            cast(Any, view).count_noise()
        return view
    if all(part is module._modules[name] for name, part in parts.items()):
        return module
    return view_of(module, _modules=parts)
