"""Twelve posteriors with reference draws: a Pyro model, its data, and how to compare a fit.

The data and the draws are read through the ``posteriordb`` package from a local copy of its
``posterior_database`` folder, named by ``$POSTERIORDB`` or by ``--posteriordb``::

    posterior = POSTERIORS["arK-arK"]
    guide = AutoFlow(posterior.model)
    ...  # fit with *posterior.args()
    mean_error, sd_error = errors(posterior.to_reference(samples), reference(posterior.name))
"""

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import posteriordb_models as models

Data = Mapping[str, Any]
Draws = dict[str, NDArray[np.float64]]
Samples = Mapping[str, Tensor]


def add_posteriordb_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--posteriordb PATH``, whose value the functions below take as ``path``."""
    parser.add_argument(
        "--posteriordb",
        metavar="PATH",
        default=os.environ.get("POSTERIORDB"),
        help="a posterior_database folder (default: $POSTERIORDB)",
    )


def _entry(name: str, path: str | None) -> Any:
    from posteriordb import PosteriorDatabase  # type: ignore[import-untyped]

    path = path or os.environ.get("POSTERIORDB")
    if not path:
        raise ValueError(
            f"cannot read {name!r}: got no posteriordb folder, expected the path of a "
            "posterior_database folder; set $POSTERIORDB or pass --posteriordb PATH"
        )
    return PosteriorDatabase(path).posterior(name)


def reference(name: str, path: str | None = None) -> Draws:
    """Read the reference draws, chains joined: parameter name to ``(num_samples,)``."""
    chains = _entry(name, path).reference_draws()
    return {key: np.concatenate([chain[key] for chain in chains]) for key in chains[0]}


def errors(samples: Mapping[str, NDArray[np.float64]], reference: Draws) -> tuple[float, float]:
    r"""The worst errors of a fit over the parameters of the reference.

    They are the largest :math:`|m - m_0| / s_0` and the largest :math:`|s / s_0 - 1|`, for mean
    :math:`m` and standard deviation :math:`s` of the fit and :math:`m_0, s_0` of the reference.

    :param samples: draws under the reference's names; see :meth:`Posterior.to_reference`.
    :param reference: the reference draws; see :func:`reference`.
    :raises ValueError: if a parameter of the reference is missing from ``samples``.
    """
    if missing := reference.keys() - samples.keys():
        raise ValueError(
            f"samples lack {sorted(missing)}: got {sorted(samples)}, expected the reference's "
            "names; map draws with Posterior.to_reference first"
        )
    pairs = [(samples[key], draws) for key, draws in reference.items()]
    mean_error = max(abs(fit.mean() - ref.mean()) / ref.std() for fit, ref in pairs)
    sd_error = max(abs(fit.std() / ref.std() - 1) for fit, ref in pairs)
    return float(mean_error), float(sd_error)


def _flatten(samples: Samples) -> Draws:
    """Name each element as Stan does: a vector ``beta`` becomes ``beta[1]``, ``beta[2]``, ..."""
    draws: Draws = {}
    for name, value in samples.items():
        array = value.detach().cpu().double().numpy()
        if array.ndim == 1:
            draws[name] = array
        else:
            draws.update({f"{name}[{i + 1}]": array[:, i] for i in range(array.shape[1])})
    return draws


def _unflatten(draws: Draws) -> dict[str, Tensor]:
    """Gather the elements of each vector again; the inverse of :func:`_flatten`."""
    groups: dict[str, list[NDArray[np.float64]]] = {}
    for key, column in draws.items():
        groups.setdefault(key.partition("[")[0], []).append(column)
    return {name: _tensor(columns[0] if name in draws else np.stack(columns, -1)) for name, columns in groups.items()}


def _identity(samples: Samples) -> dict[str, Tensor]:
    return dict(samples)


@dataclass(frozen=True)
class Posterior:
    """A posterior of ``posteriordb`` as a Pyro model.

    :param name: its name in ``posteriordb``.
    :param model: a Pyro model; called with the tensors of :meth:`args`.
    :param build: maps the data of ``posteriordb`` to the arguments of ``model``.
    :param constrain: maps the sites of ``model`` to the parameters of the reference.
    :param unconstrain: maps the parameters of the reference to the sites of ``model``.
    """

    name: str
    model: Callable[..., None]
    build: Callable[[Data], tuple[Any, ...]]
    constrain: Callable[[Samples], dict[str, Tensor]] = _identity
    unconstrain: Callable[[Samples], dict[str, Tensor]] = _identity

    def data(self, path: str | None = None) -> Data:
        """Read the data, as ``posteriordb`` has it."""
        data: Data = _entry(self.name, path).data.values()
        return data

    def args(self, path: str | None = None) -> tuple[Any, ...]:
        """Read the arguments of the model, in the default dtype."""
        return self.build(self.data(path))

    def to_reference(self, samples: Samples) -> Draws:
        """Map draws, site to ``(S, ...)``, to the reference's names, each ``(S,)``."""
        return _flatten(self.constrain(samples))

    def to_sites(self, draws: Draws) -> dict[str, Tensor]:
        """Map the reference's draws to the sites of the model; undoes :meth:`to_reference`."""
        return self.unconstrain(_unflatten(draws))


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.get_default_dtype())


def _design(*columns: Any) -> Tensor:
    """Stack predictors behind a column of ones."""
    tensors = [_tensor(column) for column in columns]
    return torch.stack([torch.ones_like(tensors[0]), *tensors], -1)


def _interaction(first: Any, second: Any) -> Tensor:
    return _design(first, second, np.multiply(first, second))


def _diamonds(data: Data) -> tuple[Tensor, Tensor]:
    x = _tensor(data["X"])[:, 1:]
    return x - x.mean(0), _tensor(data["Y"])


def _nes(data: Data) -> tuple[Tensor, Tensor]:
    ages = [np.equal(data["age_discrete"], level) for level in (2, 3, 4)]
    head, tail = ("real_ideo", "race_adj"), ("educ1", "gender", "income")
    x = _design(*(data[key] for key in head), *ages, *(data[key] for key in tail))
    return x, _tensor(data["partyid7"])


def _logmesquite(data: Data) -> tuple[Tensor, Tensor]:
    keys = ("diam1", "diam2", "canopy_height", "total_height", "density")
    x = _design(*(np.log(data[key]) for key in keys), data["group"])
    return x, _tensor(np.log(data["weight"]))


def _theta(samples: Samples) -> dict[str, Tensor]:
    mu, tau = samples["mu"], samples["tau"]
    return {"mu": mu, "tau": tau, "theta": mu[:, None] + tau[:, None] * samples["theta_trans"]}


def _theta_trans(samples: Samples) -> dict[str, Tensor]:
    mu, tau = samples["mu"], samples["tau"]
    return {"mu": mu, "tau": tau, "theta_trans": (samples["theta"] - mu[:, None]) / tau[:, None]}


def _beta1(samples: Samples) -> dict[str, Tensor]:
    sites = {key: samples[key] for key in ("mu", "alpha0", "alpha1")}
    return {**sites, "beta1": (1 - sites["alpha1"]) * samples["beta1_share"]}


def _beta1_share(samples: Samples) -> dict[str, Tensor]:
    sites = {key: samples[key] for key in ("mu", "alpha0", "alpha1")}
    return {**sites, "beta1_share": samples["beta1"] / (1 - sites["alpha1"])}


def _schools(data: Data) -> tuple[Tensor, Tensor]:
    return _tensor(data["y"]), _tensor(data["sigma"])


def _garch(data: Data) -> tuple[Tensor, float]:
    return _tensor(data["y"]), data["sigma1"]


_ALL = (
    Posterior(
        "eight_schools-eight_schools_centered",
        models.eight_schools_centered,
        _schools,
    ),
    Posterior(
        "eight_schools-eight_schools_noncentered",
        models.eight_schools_noncentered,
        _schools,
        _theta,
        _theta_trans,
    ),
    Posterior("arK-arK", models.ar_k, lambda d: (_tensor(d["y"]), d["K"])),
    Posterior("garch-garch11", models.garch11, _garch, _beta1, _beta1_share),
    Posterior(
        "gp_pois_regr-gp_regr",
        models.gp_regr,
        lambda d: (_tensor(d["x"]), _tensor(d["y"])),
    ),
    Posterior(
        "low_dim_gauss_mix-low_dim_gauss_mix",
        models.low_dim_gauss_mix,
        lambda d: (_tensor(d["y"]),),
    ),
    Posterior("sblrc-blr", models.blr, lambda d: (_tensor(d["X"]), _tensor(d["y"]))),
    Posterior("diamonds-diamonds", models.diamonds, _diamonds),
    Posterior(
        "kidiq-kidscore_interaction",
        models.kidscore,
        lambda d: (_interaction(d["mom_hs"], d["mom_iq"]), _tensor(d["kid_score"])),
    ),
    Posterior(
        "earnings-logearn_interaction",
        models.flat_regression,
        lambda d: (_interaction(d["height"], d["male"]), _tensor(np.log(d["earn"]))),
    ),
    Posterior("nes2000-nes", models.flat_regression, _nes),
    Posterior("mesquite-logmesquite", models.flat_regression, _logmesquite),
)

POSTERIORS: dict[str, Posterior] = {posterior.name: posterior for posterior in _ALL}
"""The twelve posteriors, by name."""

VARIANTS: dict[str, Posterior] = {
    "garch11_loop": Posterior("garch-garch11", models.garch11_loop, _garch, _beta1, _beta1_share),
    "garch11_dependent": Posterior("garch-garch11", models.garch11_dependent, _garch),
}
"""Other ways to write the same posteriors: a loop over time, a support that moves."""
