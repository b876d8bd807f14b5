r"""Pyro's machinery made to run under ``torch.func``."""

import contextlib
import copy
import functools
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pyro
import torch
from opt_einsum import shared_intermediates  # type: ignore[import-untyped]
from pyro.infer.traceenum_elbo import _compute_model_factors
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.runtime import _DIM_ALLOCATOR, _ENUM_ALLOCATOR, _PYRO_STACK
from torch import Tensor
from torch.distributions import Distribution

TORCH, PYRO = (Path(str(package.__file__)).parent for package in (torch, pyro))
OURS = Path(__file__).parent.parent
#: What mostly keeps a model from ``torch.vmap``.
BRANCHES = "Python branches on values and .item() are the usual cause"


class Enumerate(EnumMessenger):
    """Pyro's, without its use of ``value.data``, which vmap refuses."""

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if value is None or not hasattr(msg["fn"], "event_dim"):
            return
        shape = value.shape[: value.dim() - msg["fn"].event_dim]
        dim_to_id = msg["infer"].setdefault("_dim_to_id", {})
        dim_to_id.update(self._param_dims.get(msg["name"], {}))
        self._value_dims[msg["name"]] = {
            dim: id_ for dim, id_ in dim_to_id.items() if len(shape) >= -dim and shape[dim] > 1
        }


@contextlib.contextmanager
def restored_dims() -> Iterator[None]:
    """Enumerated sites may be given dimensions within it; the allocator's state is restored on exit."""
    before = dict(vars(_ENUM_ALLOCATOR))
    try:
        yield
    finally:
        vars(_ENUM_ALLOCATOR).update(before)


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """Within it, a model runs as if it were the only one: plates and handlers around this place do not reach it.

    Example::

        >>> with pyro.plate("rows", 3), outside():
        ...     with pyro.plate("rows", 2):
        ...         pyro.sample("z", pyro.distributions.Normal(0.0, 1.0)).shape
        torch.Size([2])
    """
    stack, dims = list(_PYRO_STACK), dict(vars(_DIM_ALLOCATOR))
    _PYRO_STACK.clear()
    vars(_DIM_ALLOCATOR).update(vars(type(_DIM_ALLOCATOR)()))
    try:
        yield
    finally:
        _PYRO_STACK[:] = stack
        vars(_DIM_ALLOCATOR).update(dims)


def as_validated(trace: Trace) -> Trace:
    """A trace whose distributions check values only if torch's are to check them now.

    No recording could follow a check. What is made in a model takes torch's setting of that moment; what is made
    before, as the prior of a ``PyroSample`` is, may have kept an earlier one: ``.expand()`` does.

    :param trace: its sites get other distributions, which stay as they are.

    Example::

        >>> prior = pyro.distributions.Normal(0.0, 1.0, validate_args=True).expand([2]).to_event(1)
        >>> trace = pyro.poutine.trace(lambda: pyro.sample("z", prior)).get_trace()
        >>> torch.distributions.Distribution.set_default_validate_args(False)
        >>> as_validated(trace).nodes["z"]["fn"].log_prob(torch.tensor([torch.nan, 0.0])).isnan()
        tensor(True)
        >>> torch.distributions.Distribution.set_default_validate_args(True)
    """
    if not Distribution._validate_args:
        for site in trace.nodes.values():
            if site["type"] == "sample":
                site["fn"] = _unvalidated(site["fn"])
    return trace


def _unvalidated(fn: Any) -> Any:
    own = vars(fn)
    within = {name: _unvalidated(part) for name, part in own.items() if isinstance(part, Distribution)}
    if not own.get("_validate_args") and all(part is own[name] for name, part in within.items()):
        return fn
    copied = copy.copy(fn)
    vars(copied).update(within, _validate_args=False)
    return copied


def cause(error: BaseException) -> str:
    """Whose code an error of ``torch.vmap`` comes from: the user's, or Pyro's, where there is nothing to mend.

    Example::

        >>> cause(ValueError("no"))
        'Python branches on values and .item() are the usual cause'
    """
    frames = [f.filename for f in traceback.extract_tb(error.__traceback__)]
    outside = [name for name in frames if not any(map(Path(name).is_relative_to, (TORCH, OURS)))]
    if outside and Path(outside[-1]).is_relative_to(PYRO):
        return f"the cause is in Pyro's own {Path(outside[-1]).name}, and nothing in the model needs to be changed"
    return BRANCHES


def total(trace: Any, dtype: torch.dtype) -> Tensor:
    """The log density of a trace, added up in no less than a given precision: half would overflow."""
    terms = [site["log_prob"] for site in trace.nodes.values() if site["type"] == "sample"]
    return cast(Tensor, sum(term.to(torch.promote_types(term.dtype, dtype)).sum() for term in terms))


def summed_out(trace: Any) -> Tensor:
    """The log density of a trace whose enumerated sites are summed out, by Pyro's own contraction.

    Scales multiply the logarithm of the sum, as in TraceEnum_ELBO; MCMC's evaluator has them inside of the sum.
    """
    promote(trace)
    trace.pack_tensors()
    return torch.stack([term.sum() for _, term in summed_terms(trace)]).sum()


def summed_terms(trace: Any) -> list[tuple[Any, Tensor]]:
    """The log density of a packed trace in parts, those of plates by row, enumerated sites summed out.

    :return: the symbols of the plates that each part is within, and the part, packed.
    """
    costs, factors, _, dims, scale = _compute_model_factors(trace, Trace())
    terms = [(ordinal, term) for ordinal, group in costs.items() for term in group]
    with shared_intermediates() as cache:
        summed = contract_tensor_tree(factors, dims, cache=cache)
    for ordinal, group in summed.items():
        terms += [(ordinal, _named_alike(scale * term, term)) for term in group]
    return terms


def _named_alike(scaled: Tensor, term: Tensor) -> Tensor:
    scaled._pyro_dims = term._pyro_dims  # type: ignore[attr-defined]
    return scaled


def promote(trace: Any) -> None:
    """Give the log densities of a trace one dtype, for contractions, which do not promote."""
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    dtype = functools.reduce(torch.promote_types, (site["log_prob"].dtype for site in sites))
    for site in sites:
        site["log_prob"], site["unscaled_log_prob"] = site["log_prob"].to(dtype), site["unscaled_log_prob"].to(dtype)
