"""Parameters and data drawn from a model itself, and the model at such data."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor

from ..checks import counted
from ..system.memory import enough
from .data_checks import is_deterministic
from .initialization import is_flat
from .pointwise import log_prob_and_mask
from .predictive import Run, each_draw, isolated

Model = Callable[..., Any]
Values = dict[str, Tensor]


class Observed(Messenger):
    """Observed sites have other values than the model gives them.

    :param data: site to value.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> with Observed({"y": torch.tensor(2.0)}):
        ...     pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(5.0))
        tensor(2.)
    """

    def __init__(self, data: Mapping[str, Tensor]):
        super().__init__()
        self.data = data

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and msg["name"] in self.data:
            msg["value"] = self.data[msg["name"]]


def at_data(model: Model) -> Model:
    """The model as a function of the values of its observed sites, before its own arguments."""

    def with_data(data: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        with Observed(data):
            return model(*args, **kwargs)

    return with_data


def simulate(
    model: Model, args: Sequence[Any], kwargs: Mapping[str, Any], num: int, like: Tensor
) -> tuple[Values, Values]:
    """Parameters from the prior, and data from the model at each; ``obs`` only says which sites are data.

    :param num: how many.
    :param like: a tensor on the device.
    :return: latent sites and observed sites, each a dict from site to ``(num, *site shape)``.
    :raises ValueError: if a value is not finite, or a site cannot be drawn from (the site is named).
    """
    with isolated(None):
        try:
            with enough("SBC", counted(num, "simulation"), num * torch.int64.itemsize, "ask for fewer"):
                answers = each_draw(Run(model, args, kwargs).prior, {"": torch.arange(num)}, "SBC")
        except NotImplementedError as error:
            raise ValueError(
                f"SBC: the model cannot be simulated ({str(error) or 'a distribution has no sampler'}). Every site "
                "needs a distribution with a sample method"
            ) from error
    for (_, name), values in answers.items():
        _check_finite(name, values)
    groups = ("prior", "prior_predictive")
    latents, data = ({name: v for (group, name), v in answers.items() if group == wanted} for wanted in groups)
    return latents, data


def _check_finite(name: str, values: Tensor) -> None:
    bad = (
        ~values.reshape(len(values), -1).isfinite().all(1)
        if values.is_floating_point()
        else torch.zeros(1, dtype=torch.bool)
    )
    if bool(bad.any()):
        raise ValueError(
            f"SBC: site '{name}' is not finite in {int(bad.sum())} of {len(bad)} simulations: the priors allow values "
            "for which the model overflows. Choose priors that do not"
        )


def check_simulable(trace: Any, latent_names: Sequence[str]) -> None:
    """Refuse a model whose density is not that of what it simulates.

    :param trace: of the model, at its arguments, conditioned on its latents.
    :param latent_names: which they are.
    :raises ValueError: naming the site.
    """
    trained = [n for n, s in trace.nodes.items() if s["type"] == "param" and s["value"].unconstrained().requires_grad]
    if trained:
        raise ValueError(
            f"SBC: the model has a parameter without a prior, pyro.param '{trained[0]}', which fits would train and "
            "nothing can be drawn of; give it a prior (pyro.sample), or a fixed value"
        )
    sites = {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and not site_is_subsample(s)}
    for name, site in sites.items():
        latent = name in latent_names or not site["is_observed"]
        reason = _density_objection(site) if is_deterministic(site) else _objection(site, latent)
        if reason is not None:
            raise ValueError(f"SBC: parameters and data cannot be drawn from the model: site '{name}' {reason}")
    data = [n for n, s in sites.items() if s["is_observed"] and n not in latent_names and not is_deterministic(s)]
    if not data:
        raise ValueError(
            "SBC: the model has no observed site at these arguments; pass data as to VI.run: their values do not "
            "matter, but their shapes do"
        )


def _density_objection(site: Any) -> str | None:
    """``NeuTraReparam`` and its like put a latent's density on the computed value, which is not drawn from it."""
    if bool((log_prob_and_mask(site)[0] == 0).all()) or not bool(log_prob_and_mask(site)[1].any()):
        return None
    return (
        "is computed by a reparameterisation that carries the density of its prior (NeuTraReparam, StructuredReparam, "
        "ConjugateReparam, SplitReparam), and not drawn from it; give the model without that one"
    )


def _objection(site: Any, latent: bool) -> str | None:
    if site_is_factor(site):
        return "is a pyro.factor, which nothing can be drawn from; write it as a distribution"
    if is_flat(site["fn"]):
        return "has a flat, improper prior; give it a proper one"
    if bool((torch.as_tensor(site["scale"]) != 1).any()):
        return (
            "is scaled (poutine.scale, or a subsampled plate), so its density is not that of a draw; remove the scale"
        )
    if latent and not bool(log_prob_and_mask(site)[1].all()):
        return "is a masked latent, so flat where it is masked; give it a proper prior there"
    return None
