"""Minibatches that are given by a ``DataLoader``: a guide of the model of all rows, which subsamples by itself."""

import copy
from typing import Any, cast

from torch.utils._pytree import tree_flatten
from torch.utils.data import DataLoader

from ..guides import AutoFlow
from ..model.batches import BatchPlate, batch_call, bound_to_rows, checked, gathered, nothing_left
from ..model.bound import BoundModel
from ..model.feasible import named_plates
from ..model.subsample import look
from ..system.exclusive import usable, validation
from ..system.randomness import forked
from .posterior import Call


def of_minibatches(who: str, guide: AutoFlow, minibatches: Any, args: Any, kwargs: Any) -> tuple[AutoFlow, Call]:
    """A guide of the model of all rows, and the rows, from one pass over minibatches.

    They are kept, in memory or in a file (:mod:`~pyro_nflows.model.row_store`), so that steps can be compiled, and
    draws be weighed over all rows. The sizes of minibatches in training are the first one's.

    :param who: takes these, for the messages.
    :param guide: of the model of a minibatch; it is set up by the first one, if it was not.
    :param minibatches: such as a ``DataLoader``.
    :param args: refused: the minibatches are the arguments by position.
    :param kwargs: the model's other arguments.
    :raises TypeError: if these are no minibatches of tensors.
    :raises ValueError: if one pass over them has not the rows of one of the model's plates, each once.
    :raises OSError: if there is no room for them on the disk.
    """
    if args:
        raise ValueError(
            f"{who}: got {len(args)} argument{'s' * (len(args) > 1)} beside minibatches=, whose batches are those by "
            "position; pass the others by name"
        )
    batches = checked(who, minibatches)
    first = next(batches, None)
    if first is None:
        raise nothing_left(who)
    call = usable(batch_call(who, first))
    size, bound = len(tree_flatten(call)[0][0]), BoundModel(guide.bare_model, call[0], {**kwargs, **call[1]})
    with validation(False), named_plates():
        guide.set_up(*bound.call)
    sites = {name: latent.site for name, latent in guide.latents.sites.items()}
    with forked():
        plate = BatchPlate.of(who, look(bound, sites), size)
    _check_latents(who, guide, plate, size)
    args, own = usable(gathered(who, call, batches, plate))
    whole = bound_to_rows(bound.with_call(args, {**kwargs, **own}), plate, size, own)
    inner = copy.deepcopy(guide)
    inner.give_model(whole.model, cast(Any, guide.init_loc_fn))
    return inner, whole.call


def _check_latents(who: str, guide: AutoFlow, plate: BatchPlate, size: int) -> None:
    """Rows that have latents must be known by their numbers."""
    names = [name for name, latent in guide.latents.sites.items() if plate.name in latent.axes]
    if names and plate.rows is None and not guide.amortize and size < plate.num_rows:
        raise ValueError(
            f"{who}: site '{names[0]}' is in plate '{plate.name}', so each row has latents of its own, and a minibatch "
            "does not say which rows it has; let the Dataset give their numbers too, as (index, x[index]), and write "
            f"pyro.plate('{plate.name}', {plate.num_rows}, subsample=index); or use amortize=True"
        )


def refuse_loader(args: Any, kwargs: Any) -> None:
    """A ``DataLoader`` as an argument of the model.

    :raises TypeError: if there is one.
    """
    if any(isinstance(value, DataLoader) for value in (*args, *kwargs.values())):
        raise TypeError("VI.run: got a DataLoader as the model's argument; pass it by name, run(minibatches=loader)")
