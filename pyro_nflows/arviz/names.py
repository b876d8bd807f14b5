"""Names that a user gives for dimensions and sites, held against those that there are."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..checks import names_in
from ..model.site_kinds import Site, is_observation, is_row_factor
from .labels import SAMPLE_DIMS, Groups, Labels
from .renamed import Names


def check_dims(dims: Mapping[str, Sequence[str]], groups: Groups, label: Labels) -> None:
    """Raise a ValueError if names are given for what is no site or argument, or for more dimensions than it has.

    :param dims: names of the dimensions of a site or an argument.
    :param groups: the variables that there are.
    :param label: knows the sites.
    """
    known = dict.fromkeys(label.sites, 0)
    for name, variable in ((name, variable) for group in groups.values() for name, variable in group.items()):
        known[name] = max(known.get(name, 0), len(variable.dims))
    _check("dims", dims, known, "sites and arguments")
    for name, given in dims.items():
        if isinstance(given, str) or len(given) > known[name]:
            raise ValueError(
                f"to_arviz: dims has {given!r} for {name!r}, expected a list of at most {known[name]} names"
            )
        if set(given) & set(SAMPLE_DIMS):
            raise ValueError(
                f"to_arviz: dims has {list(given)!r} for {name!r}, but 'chain' and 'draw' are the dimensions along "
                "which the draws lie; choose another name"
            )


def check_coords(
    coords: Mapping[str, Sequence[Any]], groups: Groups, plates: Mapping[str, int], names: Names
) -> dict[str, Sequence[Any]]:
    """The labels along dimensions by their names in the export.

    :param coords: labels along a dimension.
    :param groups: the variables that there are, as the export names them.
    :param plates: sizes of the model's plates.
    :param names: of the export.
    :raises ValueError: if labels are given along a dimension that there is not, or not as many as it is long.
    """
    variables = [v for group in groups.values() for v in group.values()]
    known = {names.dims[plate]: size for plate, size in plates.items()}
    known |= {dim: size for v in variables for dim, size in zip(reversed(v.dims), reversed(v.values.shape))}
    given = names.coords(coords)
    _check("coords", given, [*known, *SAMPLE_DIMS], "dimensions")
    for dim, labels in given.items():
        if len(labels) != known.get(dim, len(labels)):
            raise ValueError(
                f"to_arviz: coords has {len(labels)} labels along {dim!r}, expected {known[dim]}, one for each"
            )
    return given


def check_likelihood(log_likelihood: bool | Sequence[str], sites: Mapping[str, Site]) -> None:
    """Raise a ValueError if the log-likelihood is asked of what is neither an observation nor a factor with rows.

    :param log_likelihood: names of the sites, or whether all.
    :param sites: of the model.
    """
    if isinstance(log_likelihood, bool):
        return
    can = [name for name, site in sites.items() if is_observation(site) or is_row_factor(site)]
    given = names_in("to_arviz", "log_likelihood", log_likelihood)
    _check("log_likelihood", given, can, "observed sites and factors in plates")


def check_fresh(fresh: Sequence[str], predictions: Any) -> None:
    """Raise a ValueError if sites are to be drawn anew, and there is nothing to predict.

    :param fresh: names of latent sites.
    :param predictions: arguments of the model, or None.
    """
    if fresh and predictions is None:
        raise ValueError(
            f"to_arviz: got fresh={fresh!r} without predictions=; fresh names latent sites that predictions draw from "
            "their prior, and those of the posterior stay as they are"
        )


def _check(argument: str, given: Iterable[str], known: Iterable[str], what: str) -> None:
    unknown = [name for name in given if name not in set(known)]
    if unknown:
        raise ValueError(
            f"to_arviz: {argument} names {', '.join(map(repr, unknown))}, but the {what} are "
            f"{', '.join(map(repr, sorted(known))) or 'none'}"
        )
