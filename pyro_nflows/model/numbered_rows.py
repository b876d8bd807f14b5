"""Draws of all rows of a plate, told apart by their numbers: those of the rows that a model is given."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor


class NumberedRows(Messenger):
    """Remembers which rows a model gives its plates by ``subsample=``, in the run that it is around.

    :param plates: those whose rows have numbers.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def model(index):
        ...     with pyro.plate("groups", 4, subsample=index):
        ...         return pyro.sample("z", dist.Normal(torch.zeros(len(index)), 1.0))
        ...
        >>> rows = NumberedRows(["groups"])
        >>> with rows, pyro.poutine.trace() as capture:
        ...     _ = model(torch.tensor([2, 0]))
        >>> rows.of(torch.tensor([10.0, 11.0, 12.0, 13.0]), capture.trace.nodes["z"])
        tensor([12., 10.])
    """

    def __init__(self, plates: Collection[str]):
        super().__init__()
        self.plates, self._rows = plates, dict[str, Tensor]()

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["name"] in self.plates and msg["value"] is not None:
            self._rows[msg["name"]] = torch.as_tensor(msg["value"])

    def of(self, value: Tensor, site: Mapping[str, Any]) -> Tensor:
        """A site's value at the rows that its plates have here; where it has other rows than all, as it is.

        :param value: of all rows, in the order of their numbers.
        :param site: has the plates; a message of Pyro's is one.
        :raises ValueError: if there is no row of such a number.
        """
        for frame in site["cond_indep_stack"]:
            axis = value.dim() - len(site["fn"].event_shape) + (0 if frame.dim is None else frame.dim)
            rows, is_there = self._rows.get(frame.name), frame.dim is not None and axis >= 0
            if rows is not None and is_there and value.shape[axis] == frame.full_size:
                _check(frame, rows)
                value = value.index_select(axis, rows.to(value.device))
        return value


def _check(frame: Any, rows: Tensor) -> None:
    if bool(((rows < 0) | (rows >= frame.full_size)).any()):
        wrong = int(rows[(rows < 0) | (rows >= frame.full_size)][0])
        raise ValueError(
            f"plate '{frame.name}' has rows 0 to {frame.full_size - 1}, got subsample with {wrong}; new rows have no "
            "draws, so have their latent sites drawn from the prior, by fresh="
        )
