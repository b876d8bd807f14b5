"""A model of one minibatch at a time, as a model of all rows that subsamples them by itself."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from .bound import BoundModel
from .row_store import RowStore
from .subsample import subsample_sites

#: A model's arguments, by position and by name.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class OfAllRows:
    """A model that is given all rows, draws a minibatch of them, and runs a model that is given minibatches.

    :param model: the model of a minibatch.
    :param plate: the rows' plate in it.
    :param num_rows: how many there are.
    :param size: of a minibatch.
    :param names: the arguments by name that have rows; all by position have.

    Example::

        >>> def model(y):
        ...     with pyro.plate("data", 5, subsample_size=len(y)):
        ...         return y
        ...
        >>> OfAllRows(model, "data", 5, 2)(torch.arange(5)).shape
        torch.Size([2])
    """

    def __init__(self, model: Any, plate: str, num_rows: int, size: int, names: Iterable[str] = ()):
        self.model, self.plate, self.num_rows, self.size = model, plate, num_rows, size
        self.names = frozenset(names)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        rows = pyro.plate(self.plate, self.num_rows, subsample_size=self.size).indices
        own = {name: kwargs[name] for name in self.names}
        tensors, structure = tree_flatten((args, own))
        args, own = tree_unflatten([tensor[rows.to(tensor.device)] for tensor in tensors], structure)
        with _Given(self.plate, rows):
            return self.model(*args, **{**kwargs, **own})


class _Given(Messenger):
    """A plate's rows are known, and were drawn outside: nothing out there sees them again."""

    def __init__(self, plate: str, rows: Tensor):
        super().__init__()
        self.plate, self.rows = plate, rows

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["name"] == self.plate:
            msg["value"], msg["done"], msg["stop"] = self.rows, True, True


@dataclass(frozen=True)
class BatchPlate:
    """The plate of a model in which the rows of a minibatch are.

    :param name: its name.
    :param num_rows: how many rows it has.
    :param rows: the numbers of the batch's rows, if the model is given them; else None.
    """

    name: str
    num_rows: int
    rows: Tensor | None

    @staticmethod
    def of(owner: str, trace: Any, size: int) -> "BatchPlate":
        """The only plate of a trace that has as many rows in this run as the batch.

        :param owner: who asks; messages begin with it.
        :raises ValueError: if there is none, or several, or it has no other rows.
        """
        sites = {name: site for name, site in subsample_sites(trace).items() if len(site["value"]) == size}
        larger = {name: site for name, site in sites.items() if site["fn"].size > size} or sites
        if len(larger) != 1:
            found = f"plates {sorted(larger)} have" if larger else "no plate of the model has"
            raise ValueError(
                f"{owner}: {found} as many rows as a minibatch, {size}; with N rows in all, put what is observed in "
                "one pyro.plate('data', N, subsample_size=len(batch)), or subsample=index where each row has latents"
            )
        ((name, site),) = larger.items()
        given = site["fn"].subsample_size is None and site["fn"].size > size
        return BatchPlate(name, int(site["fn"].size), torch.as_tensor(site["value"]) if given else None)


def batch_call(owner: str, batch: Any) -> Arguments:
    """A minibatch as arguments of the model: a tuple by position, a dict by name, a tensor alone.

    :param owner: who asks.
    :raises TypeError: if there is anything but tensors in it.
    :raises ValueError: if the tensors have not as many rows each.
    """
    if isinstance(batch, Mapping):
        call: Arguments = (), dict(batch)
    else:
        call = (tuple(batch) if isinstance(batch, list | tuple) else (batch,)), {}
    leaves = tree_flatten(call)[0]
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or not leaf.dim():
            raise TypeError(
                f"{owner}: a minibatch must be tensors whose first dimension is the row, as a DataLoader makes them, "
                f"got {type(leaf).__name__} in one"
            )
    if len({len(leaf) for leaf in leaves}) != 1:
        raise ValueError(
            f"{owner}: tensors of a minibatch have {[len(leaf) for leaf in leaves]} rows; expected as many"
        )
    return call


def checked(owner: str, minibatches: Any) -> Iterator[Any]:
    """An iterator over minibatches.

    :raises TypeError: if these are none.
    """
    if isinstance(minibatches, Tensor | Mapping | str) or not isinstance(minibatches, Iterable):
        raise TypeError(
            f"{owner}: expected minibatches to be a torch.utils.data.DataLoader, or another iterable of batches, got "
            f"{type(minibatches).__name__}"
        )
    return iter(minibatches)


def nothing_left(owner: str) -> ValueError:
    """For minibatches of which there are none."""
    return ValueError(
        f"{owner}: there was no minibatch; an iterator that has been gone through is empty, so pass the DataLoader "
        "itself, or make the iterator again"
    )


def gathered(owner: str, first: Arguments, rest: Iterable[Any], plate: BatchPlate) -> Arguments:
    """All rows of one pass over minibatches, in the order of their numbers where these are known.

    A minibatch is let go of when its rows are at their places: in memory, or, where all rows are more than
    :data:`~pyro_nflows.model.row_store.MOST_BYTES`, in a temporary file.

    :param owner: who asks.
    :param first: the first minibatch, as arguments.
    :param rest: those after it.
    :param plate: that the rows are in.
    :raises ValueError: if the rows of one pass are not those of the plate, each once.
    """
    leaves, structure = tree_flatten(first)
    known = [i for i, leaf in enumerate(leaves) if plate.rows is not None and torch.equal(leaf, plate.rows.to(leaf))]
    if plate.rows is not None and not known:
        raise _no_numbers(owner, plate)
    store, seen, num = RowStore(leaves, plate.num_rows), torch.zeros(plate.num_rows, dtype=torch.bool), 0
    for batch in itertools.chain([first], rest):
        more, form = tree_flatten(batch_call(owner, batch) if num else batch)
        if form != structure:
            raise ValueError(f"{owner}: minibatches differ in their form: {form} after {structure}")
        _check_alike(owner, leaves, more)
        size = len(more[0])
        rows: Tensor | slice = slice(num, num + size)
        num += size
        if len(known) == 1:
            rows = _fresh(more[known[0]], seen)
            if len(rows) != size:
                raise _no_numbers(owner, plate)
            seen[rows] = True
        if num > plate.num_rows:
            break
        store.put(rows, more)
    if num != plate.num_rows:
        raise _other_rows(owner, plate, num, len(leaves[0]))
    if len(known) > 1:  # which of them has the numbers shows when all are there
        store = store.sorted(_numbers(owner, [store.columns[i] for i in known], plate))
    return cast(Arguments, tree_unflatten(store.columns, structure))


def _fresh(numbers: Tensor, seen: Tensor) -> Tensor:
    """Those of a minibatch's numbers that are rows which have not been there."""
    rows = numbers.reshape(-1).cpu().long()
    rows = rows[(rows >= 0) & (rows < len(seen))]
    return rows[~seen[rows]].unique(sorted=False) if len(rows.unique()) < len(rows) else rows[~seen[rows]]


def _check_alike(owner: str, first: list[Tensor], more: list[Tensor]) -> None:
    """Minibatches differ in their number of rows alone."""
    for a, b in zip(first, more):
        if a.shape[1:] != b.shape[1:] or a.dtype != b.dtype:
            raise ValueError(
                f"{owner}: minibatches differ: a row of {tuple(b.shape[1:])} numbers ({b.dtype}) after one of "
                f"{tuple(a.shape[1:])} ({a.dtype}); expected rows that are alike, such as padded ones"
            )


def _other_rows(owner: str, plate: BatchPlate, num: int, size: int) -> ValueError:
    """For a pass that has not as many rows as the plate."""
    remedy = (
        "expected each row once, so without drop_last=True, without a sampler that draws with replacement, and "
        "with workers of an IterableDataset that share its rows out"
    )
    if plate.num_rows == size:
        remedy = (
            f"the model has to say how many there are in all, pyro.plate('{plate.name}', N, subsample_size=len(batch))"
        )
    return ValueError(
        f"{owner}: plate '{plate.name}' has {plate.num_rows:,} rows, but one pass over the minibatches gave "
        f"{'more' if num > plate.num_rows else f'{num:,}'}; {remedy}"
    )


def _numbers(owner: str, columns: list[Tensor], plate: BatchPlate) -> Tensor:
    """The column of the rows' numbers."""
    for column in columns:
        if torch.equal(column.cpu().long().sort().values, torch.arange(plate.num_rows)):
            return column.cpu().long()
    raise _no_numbers(owner, plate)


def _no_numbers(owner: str, plate: BatchPlate) -> ValueError:
    return ValueError(
        f"{owner}: plate '{plate.name}' is given its rows by subsample=, which must be one of the tensors of a "
        f"minibatch: the rows' numbers, from 0 to {plate.num_rows - 1:,}, each once in a pass; a Dataset can give them "
        "as (index, x[index], y[index])"
    )


def bound_to_rows(bound: BoundModel, plate: BatchPlate, size: int, names: Iterable[str]) -> BoundModel:
    """A model of minibatches with all rows as its arguments.

    :param size: of a minibatch.
    :param names: the arguments by name that have rows.
    """
    if size == plate.num_rows:
        return bound
    return BoundModel(OfAllRows(bound.model, plate.name, plate.num_rows, size, names), bound.args, bound.kwargs)
