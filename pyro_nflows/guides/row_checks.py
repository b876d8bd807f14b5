r"""What guides refuse of subsampled plates and encoders of rows, each with what was found and what to do instead."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..checks import first_line
from ..layers import PlateFlow


def refuse_subsampled(name: str, latents: Iterable[Any], can_follow: bool) -> None:
    """Latents in a subsampled plate are other latents at each step."""
    for latent in latents:
        for frame in latent.plates:
            if frame.name in latent.subsampled:
                remedy = (
                    'Take structure="plates" (the default there), which has numbers for each row'
                    if can_follow
                    else "Take AutoFlow, which follows the plate; or remove subsample_size"
                )
                raise ValueError(
                    f"{name}: latent site '{latent.name}' is inside plate '{frame.name}', which is subsampled "
                    f"({frame.size} of {frame.full_size}). A joint guide has one fixed set of latents and would "
                    f"be silently wrong there. {remedy}"
                )


def check_rows(name: str, sizes: Mapping[str, int], rows: Mapping[str, Tensor]) -> None:
    """The rows of a call against the numbers of rows when the guide was set up."""
    for plate, size in sizes.items():
        if not len(rows[plate]) or int(rows[plate].min()) < 0 or int(rows[plate].max()) >= size:
            raise ValueError(
                f"{name}: plate '{plate}' has {size} rows, numbered from 0, as when the guide was set up; got row "
                f"{int(rows[plate].max()) if len(rows[plate]) else None}"
            )


def rows_given(name: str, plate: str, site: str) -> ValueError:
    """For values of all rows, where the arguments say which rows the model has."""
    return ValueError(
        f"{name}: values of site '{site}' are found by a run of the model, whose rows of plate '{plate}' are given by "
        "its arguments (subsample=). Pass arguments with all rows, as in guide.median(*args), or make the guide with "
        "centering=None"
    )


def check_plates(name: str, expected: Iterable[str], found: Iterable[str]) -> None:
    """The plates of a run of the model."""
    for plate in expected:
        if plate not in found:
            raise ValueError(
                f"{name}: this run of the model has no plate '{plate}', which the guide's latents are in; models whose "
                "plates change from run to run are not supported"
            )


def check_latent(name: str, latents: Iterable[str], trace: Any) -> None:
    """What is observed in a run of the model, and was not in the first one."""
    for site in latents:
        if site in trace.nodes and trace.nodes[site]["is_observed"]:
            raise ValueError(
                f"{name}: site '{site}' is observed at these arguments, but was not in the guide's first call, which "
                "took it for a latent; make a new guide, and call it on data first"
            )


def check_amortize(name: str, amortize: Any) -> None:
    """Whether rows are to be encoded, or by what."""
    if not isinstance(amortize, bool | nn.Module):
        raise TypeError(
            f"{name}: amortize must be True, False, or a torch.nn.Module from the data of B rows to (B, F), got "
            f"{type(amortize).__name__}"
        )


def check_row_flow(name: str, rows: Any, structure: str) -> None:
    """Refuse a flow of rows where there are none."""
    if rows is not None and structure == "joint":
        raise ValueError(
            f"{name}: rows= is a flow of the rows of plates, which a joint guide does not tell apart; "
            "leave out structure='joint', or rows"
        )


def need_exact_rows(name: str, layer: nn.Module) -> None:
    """For what weighs rows one by one, whose densities have to be known."""
    if any(isinstance(part, PlateFlow) and part.noise_dim for part in layer.modules()):
        raise ValueError(
            f"{name}: VI weighs the rows of subsampled plates one by one, and rows= is a flow with auxiliary "
            "variables, whose density is not known; train it by SVI, or take a bijective flow, such as flows.iaf"
        )


def nothing_to_amortize(name: str) -> ValueError:
    """For an encoder without rows."""
    return ValueError(
        f"{name}: amortize= is for latents in subsampled plates, and this model had none in its first run; give the "
        "plate a subsample_size, and call the guide on a minibatch first"
    )


def nothing_observed(name: str, plates: Sequence[str]) -> ValueError:
    """For rows without data."""
    return ValueError(
        f"{name}: amortize= needs what is observed in each row, and no site in plate '{' x '.join(plates)}' is "
        "observed; put the observations of a row into its plate, or leave amortize out"
    )


def not_observed(name: str, site: str) -> ValueError:
    """For a run without the data that rows are encoded by."""
    return ValueError(
        f"{name}: rows are encoded by site '{site}', which is not observed in this run of the model; pass its data, or "
        "draws of guide.for_rows(...) with data as posterior_samples of Predictive"
    )


def several_encoders(name: str, num: int) -> ValueError:
    """For one encoder of the user's for several kinds of rows."""
    return ValueError(
        f"{name}: amortize got one encoder, and the latents are in {num} sets of subsampled plates; take amortize=True"
    )


def encoded_rows(name: str, got: Any, num_rows: int) -> ValueError:
    """For features of another shape."""
    return ValueError(f"{name}: the encoder must give features of shape ({num_rows}, F) for {num_rows} rows, got {got}")


def encoder_fails(name: str, error: Exception, raw: Mapping[str, Tensor]) -> ValueError:
    """For an encoder that cannot be run on the data of rows as they are."""
    each = {site: f"{tuple(rows.shape)} of {rows.dtype}" for site, rows in raw.items()}
    ((site, first), *others) = each.items()
    data = f"a dict by site, {each}" if others else f"those of site '{site}', a tensor {first}"
    return ValueError(
        f"{name}: the encoder in amortize= fails at the data of rows ({first_line(error)}). It is called with {data}: "
        "rows come first, then what a row has; it must give features of shape (rows, F)"
    )


def need_rows(name: str, amortizer: nn.Module | None) -> None:
    """For what is asked of all rows where their numbers come from data."""
    if amortizer is not None:
        raise ValueError(
            f"{name}: with amortize=, rows have no numbers of their own, so there is no posterior of all rows at once; "
            "guide.for_rows(*args) draws that of the rows in these arguments"
        )


def no_rows(name: str) -> ValueError:
    """For rows of a guide that has all latents in each call."""
    return ValueError(
        f"{name}: for_rows is for latents in subsampled plates, and this model has none; take guide.get_posterior, or "
        "Predictive"
    )
