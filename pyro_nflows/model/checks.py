"""What a run of a model is refused for, each with what was found and what to do instead."""

from collections.abc import Sequence
from typing import Any

import torch

from .data_checks import is_deterministic


def no_bijection(name: str, node: Any) -> ValueError:
    """For a support that no real vector stands for."""
    return ValueError(
        f"{name}: latent site '{node['name']}' has support {node['fn'].support}, to which no bijection from real "
        "vectors is known; build it from latents that have one (LKJCholesky and scales for a covariance), or "
        "use a poutine.reparam"
    )


def check_run(name: str, unknown: Sequence[str], missing: Sequence[str]) -> None:
    """A run's latents against the guide's: those that it does not know, and those that were not reached."""
    if unknown:
        raise ValueError(
            f"{name}: the model has a latent site '{unknown[0]}' that the guide does not know. Either the model's "
            "sites change from run to run (they must not), or the site was hidden from the guide: mark it "
            'infer={"enumerate": "parallel"} if it is discrete, else include it'
        )
    if missing:
        raise ValueError(
            f"{name}: the guide has a latent site '{missing[0]}' that this run of the model did not reach; models "
            "whose sites change from run to run are not supported"
        )


def check_shape(name: str, node: Any, expected: torch.Size) -> None:
    """A latent's shape in a run against that in the guide's first one."""
    shape = node["fn"].shape()
    if shape != expected:
        raise ValueError(
            f"{name}: latent site '{node['name']}' has shape {tuple(shape)} in this run of the model, and had "
            f"{tuple(expected)} when the guide was set up; make a new guide for data of another size"
        )


def enumerated_support(name: str, site: str) -> ValueError:
    """For a value whose shape has dimensions of enumerated sites, which came with its support."""
    return ValueError(
        f"{name}: the support of latent site '{site}' depends on a discrete site that is enumerated, so its value "
        "would be another one for each. Expected one support; sample on a fixed one and transform, as in "
        f'pyro.deterministic("{site}", upper * c) with c ~ Uniform(0, 1)'
    )


def random_support(name: str, site: str) -> ValueError:
    """For a support that two runs of the model at the same latents do not agree on."""
    return ValueError(
        f"{name}: the support of latent site '{site}' changes between two runs of the model at the same latents: it "
        "depends on a site that is drawn anew in each, which is enumerated, hidden by poutine.block, or a subsample. "
        "A guide follows supports that depend on its own latents, on parameters and on arguments; sample on a fixed "
        f'support and transform, as in pyro.deterministic("{site}", upper * c) with c ~ Uniform(0, 1)'
    )


def refuse_nan(name: str, trace: Any) -> None:
    """Data with NaN: even where they are masked, gradients through them are NaN."""
    for site, node in trace.nodes.items():
        value = node.get("value")
        if node["type"] != "sample" or not node["is_observed"] or is_deterministic(node):
            continue
        if torch.is_tensor(value) and bool(value.isnan().any()):
            raise ValueError(
                f"{name}: site '{site}' is observed with NaN ({int(value.isnan().sum())} of {value.numel()} values). "
                "Drop those rows; or fill them with any valid value and hide them with obs_mask or poutine.mask"
            )
