"""What is refused about a model's data: shapes that broadcast where they should not, and precisions that do not mix."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pyro.distributions import Delta, MaskedDistribution
from pyro.util import check_site_shape
from torch import Tensor
from torch.utils._pytree import tree_leaves

#: What torch says where it does not promote dtypes.
MIXED = re.compile(r"same dtype|expected scalar type|same type|dtype.*mismatch|Index put requires", re.IGNORECASE)


def is_deterministic(site: Any) -> bool:
    """Whether the site's value is computed: a ``pyro.deterministic``, or what ``poutine.reparam`` makes of a latent."""
    return bool(site["infer"].get("_deterministic")) or (site["is_observed"] and _is_at_itself(site))


def _is_at_itself(site: Any) -> bool:
    """Whether a site's distribution is a point mass at the very tensor that is its value, or without a density.

    An observed ``Delta`` at a prediction is another tensor than the data.
    """
    fn, masked = site["fn"], False
    while hasattr(fn, "base_dist"):
        masked = masked or (isinstance(fn, MaskedDistribution) and fn._mask is False)
        fn = fn.base_dist
    return isinstance(fn, Delta) and (masked or fn.v is site["value"])


def check_log_prob_shapes(name: str, trace: Any, max_plate_nesting: float = float("inf")) -> None:
    """Each site's log density against the plates it is in, by Pyro's own rule.

    :param name: of the guide.
    :param trace: of the model, without subsampled indices; sites without ``log_prob`` are passed over.
    :param max_plate_nesting: dimensions to the left of it may hold anything.
    :raises ValueError: if one has another shape.
    """
    for site in trace.nodes.values():
        if site["type"] == "sample" and "log_prob" in site:
            try:
                check_site_shape(site, max_plate_nesting)  # type: ignore[arg-type]
            except ValueError as error:
                if "invalid log_prob shape" not in str(error):
                    raise
                raise _wrong_shape(name, site) from None


def _wrong_shape(name: str, site: Mapping[str, Any]) -> ValueError:
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    plates = ", ".join(f"'{frame.name}' ({frame.size})" for frame in frames) or "none"
    got, fn, value = tuple(site["log_prob"].shape), site["fn"], site["value"]
    means = f"a value of shape {tuple(getattr(value, 'shape', ()))} under a distribution of shape {tuple(fn.shape())}"
    return ValueError(
        f"{name}: site '{site['name']}' has an invalid log_prob shape: expected {_expected(frames)} by its plates "
        f"({plates}), got {got}, of {means}. If one of the two is (N, 1) and the other (N,), they broadcast to N x N: "
        "give them the same shape, with .squeeze(-1) or [:, None]. Else put each batch dimension into a pyro.plate, or "
        "declare it part of the event with .to_event(...)"
    )


def _expected(frames: list[Any]) -> tuple[Any, ...]:
    """The shape that plates make; a dimension that no plate says anything of is a star."""
    sizes: list[Any] = ["*"] * max((-frame.dim for frame in frames), default=0)
    for frame in frames:
        sizes[frame.dim] = frame.size
    return tuple(sizes)


def need_tensors(name: str, trace: Any) -> None:
    """Refuse observed values that are no tensors, where the site's distribution cannot take them.

    :raises TypeError: naming the site.
    """
    for site, node in trace.nodes.items():
        if node["type"] == "sample" and node["is_observed"] and not isinstance(node["value"], Tensor):
            try:
                node["fn"].log_prob(node["value"])
            except (TypeError, ValueError, AttributeError):
                kind = type(node["value"])
                raise TypeError(
                    f"{name}: site '{site}' is observed with a {kind.__module__}.{kind.__name__}; expected a tensor. "
                    "Convert the data first: torch.as_tensor(y), or torch.tensor(y.to_numpy()) for a pandas Series"
                ) from None


def mixed_dtypes(name: str, error: BaseException, args: Any, kwargs: Any) -> TypeError | None:
    """What to say where the model combines tensors of several dtypes in a way in which torch does not.

    :param name: of the guide.
    :param error: what the model raised.
    :param args: the model's arguments, with ``kwargs``.
    :return: None for another error.
    """
    if not isinstance(error, RuntimeError) or not MIXED.search(str(error)):
        return None
    default = torch.get_default_dtype()
    others = sorted({f"{label} ({_short(dtype)})" for label, dtype in _dtypes(args, kwargs) if dtype != default})
    found = f"of the model's arguments, {', '.join(others)}" if others else "of its data, some"
    return TypeError(
        f"{name}: the model combines tensors of several dtypes in a way that torch refuses ("
        f"{str(error).splitlines()[0]}). Latents whose priors are written with Python numbers are "
        f"{_short(default)}, torch's default dtype; {found} are not. Give the data the same dtype, "
        f"x.to(torch.{_short(default)}), or run torch.set_default_dtype(torch.float64) first for double precision"
    )


@contextlib.contextmanager
def explained(name: str, args: Any, kwargs: Any) -> Iterator[None]:
    """Within it, torch's errors about dtypes say what the user can do.

    :raises TypeError: in their place.
    """
    try:
        yield
    except RuntimeError as error:
        mixed = mixed_dtypes(name, error, args, kwargs)
        if mixed is None:
            raise
        raise mixed from error


def _dtypes(args: Any, kwargs: Any) -> Iterator[tuple[str, torch.dtype]]:
    """Each tensor among the arguments, by the argument that holds it."""
    named = {**{f"argument {i}": value for i, value in enumerate(args)}, **kwargs}
    for label, value in named.items():
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor):
                yield label, leaf.dtype


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
