"""What is refused about discrete latents that are to be summed out."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch


def refuse_endless(name: str, sites: Iterable[Any]) -> None:
    """Enumerated sites with no finite list of values.

    :param name: of the guide.
    :param sites: of a trace.
    :raises ValueError: naming the first.
    """
    for site in sites:
        try:
            site["fn"].enumerate_support(expand=False)
        except NotImplementedError:
            raise ValueError(
                f"{name}: site '{site['name']}' ({type(site['fn']).__name__}) is to be enumerated, and has no finite "
                "list of values to sum over. Use a Categorical over as many values as matter, or integrate the site "
                "out by hand (a Poisson with a Gamma rate is a NegativeBinomial)"
            ) from None


def scaled_by_case(name: str, site: str) -> ValueError:
    """For a masked latent whose scale is outside of the sum over the cases of its mask."""
    return ValueError(
        f"{name}: latent site '{site}' is masked where an enumerated site says so, and scaled. A scale multiplies the "
        "logarithm of the sum over the cases, in only some of which the site has a density, so no scaled density of it "
        "integrates. Expected no poutine.scale around it; scale the loss in its place"
    )


@contextlib.contextmanager
def explained_scales(name: str, trace: Any) -> Iterator[None]:
    """Within it, Pyro's errors about the scales of enumerated sites say which sites they are.

    :param name: of the guide.
    :param trace: of the model, with its enumerated sites.
    :raises ValueError: in their place.
    """
    try:
        yield
    except ValueError as error:
        if "poutine.scale" not in str(error):
            raise
        scales = "; ".join(f"'{site['name']}' by {_written(site['scale'])}" for site in _summed(trace))
        raise ValueError(
            f"{name}: sites that are enumerated, and those that depend on them, must be scaled alike, by one number: "
            f"the scale multiplies the logarithm of their sum. Found {scales}. Put one poutine.scale around all of "
            "them; in a subsampled plate, put the enumerated sites into the plate, or give up subsample_size"
        ) from None


def _summed(trace: Any) -> list[Any]:
    """Enumerated sites and those that depend on them."""
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    symbols = {site["infer"].get("_enumerate_symbol") for site in sites}
    return [site for site in sites if symbols.intersection(site["packed"]["log_prob"]._pyro_dims)]


def _written(scale: Any) -> str:
    number = not isinstance(scale, torch.Tensor) or scale.numel() == 1
    return f"{float(scale):.6g}" if number else f"a tensor of shape {tuple(scale.shape)}"
