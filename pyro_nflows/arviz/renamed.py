"""Names that ``xarray`` and a netCDF file can hold, of which none takes another's place.

A slash, as ``pyro.contrib.autoname.scope`` has it, becomes a dot, since a netCDF file takes it for a group. ``chain``
and ``draw`` are the dimensions of draws, and no variable may be named as a dimension of its group.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .labels import SAMPLE_DIMS, Groups, Variable

#: Groups whose variables have no draws.
DATA = "_data"


class Names(NamedTuple):
    """The names of variables and dimensions in the export, by those of the model.

    Example::

        >>> import numpy as np
        >>> draws = Variable(np.zeros((1, 9)), [])
        >>> names = names_of({"posterior": {"x/b": draws, "draw": draws}})
        >>> names.variables
        {'x/b': 'x.b', 'draw': 'draw_variable'}
        >>> names.notes()
        ["the variable 'draw' is named 'draw_variable'"]
    """

    variables: dict[str, str]
    dims: dict[str, str]

    def renamed(self, groups: Groups) -> Groups:
        """The same groups with these names."""
        return {g: {self.variables[n]: self._variable(v) for n, v in held.items()} for g, held in groups.items()}

    def coords(self, coords: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        """Labels along dimensions, given by the model's names or by those of the export."""
        taken = {*self.dims.values(), *SAMPLE_DIMS}
        return {dim if dim in taken else self.dims.get(dim, dim): labels for dim, labels in coords.items()}

    def notes(self) -> list[str]:
        """What has another name than a dot in the place of a slash."""
        pairs = {"variable": self.variables, "dimension": self.dims}
        return [
            f"the {kind} {name!r} is named {new!r}"
            for kind, names in pairs.items()
            for name, new in names.items()
            if new != _dotted(name)
        ]

    def _variable(self, variable: Variable) -> Variable:
        coords = {self.dims[dim]: labels for dim, labels in variable.coords.items()}
        return variable._replace(dims=[self.dims[dim] for dim in variable.dims], coords=coords)


def names_of(groups: Groups, plates: Iterable[str] = ()) -> Names:
    """A name for each variable and each dimension.

    :param groups: variables by group and name, as the model has them.
    :param plates: dimensions that a user may name though nothing lies along them.
    """
    drawn = {name for group, held in groups.items() if not group.endswith(DATA) for name in held}
    known = dict.fromkeys(name for held in groups.values() for name in held)
    variables = _distinct(known, {name: "variable" for name in SAMPLE_DIMS if name in drawn})
    given = dict.fromkeys([*plates, *(dim for held in groups.values() for v in held.values() for dim in v.dims)])
    reserved = dict.fromkeys(_in_both(groups, variables), "dim") | dict.fromkeys(SAMPLE_DIMS, "dim")
    reserved |= {name: "plate" for name in reserved if name in set(plates)}
    return Names(variables, _distinct(given, reserved, variables.values()))


def _in_both(groups: Groups, variables: Mapping[str, str]) -> Iterator[str]:
    """Names of variables that a dimension of their group has too."""
    for group, held in groups.items():
        names = {variables[name] for name in held}
        for name, variable in held.items():
            # xarray's own way to say what is along a dimension
            is_index = group.endswith(DATA) and [_dotted(dim) for dim in variable.dims] == [variables[name]]
            yield from (_dotted(dim) for dim in variable.dims if not is_index and _dotted(dim) in names)


def _distinct(names: Iterable[str], reserved: Mapping[str, str], taken: Collection[str] = ()) -> dict[str, str]:
    """A name for each that no other has; what can keep its own does."""
    names = list(names)
    found = {name: name for name in names if _dotted(name) == name and name not in reserved}
    for name in names:
        if name not in found:
            found[name] = _free(_dotted(name), reserved, {*found.values(), *reserved}, taken)
    return {name: found[name] for name in names}


def _free(name: str, reserved: Mapping[str, str], used: Collection[str], taken: Collection[str]) -> str:
    if name not in used:
        return name
    stem = f"{name}_{reserved[name]}" if name in reserved else name
    candidates = (stem if number == 1 else f"{stem}_{number}" for number in range(1, len(used) + len(taken) + 3))
    return next(candidate for candidate in candidates if candidate not in used and candidate not in taken)


def _dotted(name: str) -> str:
    return name.replace("/", ".")
