"""Groups of named arrays as what the installed ArviZ works on: ``InferenceData`` (0.x) or ``xarray.DataTree`` (1.x)."""

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .labels import SAMPLE_DIMS, Groups, Variable

#: Facts about the draws, for the attributes of what holds them: words and numbers, which a netCDF file can hold.
Facts = Mapping[str, str | int | float]
#: The groups that these facts are of; the whole has them too.
OF_THE_DRAWS = ("posterior", "sample_stats")


def contained(groups: Groups, coords: Mapping[str, Sequence[Any]], facts: Facts) -> Any:
    """The groups that are not empty, as what the installed ArviZ works on.

    :param groups: variables by group and name.
    :param coords: labels along a dimension.
    :param facts: about the draws.
    """
    import arviz

    about: dict[str, Any] = {name: _plain(value) for name, value in facts.items()}
    common = {"inference_library": "pyro_nflows", "inference_library_version": _version("pyro_nflows")}
    whole = {**common, "torch_version": _version("torch"), "pyro_version": _version("pyro-ppl"), **about}
    datasets = {
        group: _dataset(group, variables, coords, whole if group in OF_THE_DRAWS else common)
        for group, variables in groups.items()
        if variables
    }
    if not _is_modern(arviz.__version__):
        return arviz.InferenceData(**datasets, attrs=whole)
    from xarray import DataTree

    tree = DataTree.from_dict(datasets)
    tree.attrs.update(whole)
    return tree


def _dataset(group: str, variables: Mapping[str, Variable], coords: Mapping[str, Any], attrs: dict[str, Any]) -> Any:
    import arviz

    if group.startswith("predictions"):
        coords = _fitting(coords, variables.values())
    keyword = "sample_dims" if _is_modern(arviz.__version__) else "default_dims"
    sample_dims = {keyword: [] if group.endswith("_data") else SAMPLE_DIMS}
    coords = {**coords, **{dim: labels for v in variables.values() for dim, labels in v.coords.items()}}
    values = {name: variable.values for name, variable in variables.items()}
    dims = {name: variable.dims for name, variable in variables.items()}
    # ArviZ 0.x gives an array without dimensions one, of length one.
    scalars = {name: ((), value) for name, value in values.items() if np.ndim(value) == 0}
    others = {name: value for name, value in values.items() if name not in scalars}
    made = arviz.dict_to_dataset(others, dims=dims, coords=coords, attrs=attrs, **sample_dims)
    return made.assign(scalars)[list(values)]


def _fitting(coords: Mapping[str, Sequence[Any]], variables: Iterable[Variable]) -> dict[str, Sequence[Any]]:
    """The labels of dimensions that are as long here."""
    sizes = {dim: size for v in variables for dim, size in zip(reversed(v.dims), reversed(v.values.shape))}
    return {dim: labels for dim, labels in coords.items() if sizes.get(dim, len(labels)) == len(labels)}


def _is_modern(version: str) -> bool:
    return int(version.split(".")[0]) >= 1


def _plain(value: str | int | float) -> str | int | float:
    """A truth value as 0 or 1: netCDF files have none."""
    return int(value) if isinstance(value, bool | np.bool_) else value


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"
