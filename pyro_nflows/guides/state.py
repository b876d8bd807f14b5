"""What a guide's state, copies and pickles hold besides its parameters."""

import copy
import json
from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Distribution

#: What a guide asks of a latent site.
ASKED = ("type", "name", "fn", "value", "is_observed", "scale", "mask", "cond_indep_stack")


def encoded(**values: Any) -> Tensor:
    """Plain values as bytes in a tensor, so that a state dict holds tensors only.

    Example::

        >>> decoded(encoded(modes=None))
        {'modes': None}
    """
    return torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)


def decoded(state: Tensor) -> dict[str, Any]:
    """What :func:`encoded` was given."""
    return dict(json.loads(bytes(state.tolist()).decode()))


def latents_alone(trace: Any) -> Any:
    """A prototype's latent sites, without the data, parameters and arguments that the model was run with."""
    if trace is None:
        return None
    new = Trace()
    for name, node in trace.iter_stochastic_nodes():
        new.add_node(name, **_asked(node))
    return new


def _asked(node: Mapping[str, Any]) -> dict[str, Any]:
    return {**{key: _detached(node[key]) for key in ASKED}, "args": (), "kwargs": {}, "infer": {}}


def _detached(thing: Any) -> Any:
    """A tensor, or a distribution's, without the parameters that it was made of: those cannot be copied or pickled."""
    if isinstance(thing, Tensor):
        return thing.detach()
    if not isinstance(thing, Distribution):
        return thing
    new = copy.copy(thing)
    new.__dict__.update({key: _detached(value) for key, value in vars(thing).items()})
    return new
