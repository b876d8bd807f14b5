"""A model and the arguments of one call: one value that is handed around, in the place of data that are swapped in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


@dataclass(frozen=True, eq=False)
class BoundModel:
    """A Pyro model with its arguments. It does not change; other data make another one.

    :param model: the Pyro model.
    :param args: its arguments, with ``kwargs``; tensors may lie in lists, tuples and dicts.

    Example::

        >>> import torch
        >>> bound = BoundModel(lambda x, scale: scale * x["a"], ({"a": torch.tensor(2.0)},), {"scale": 3})
        >>> bound()
        tensor(6.)
        >>> bound.with_data([torch.tensor(5.0)])()
        tensor(15.)
        >>> len(bound.tensors)
        1
    """

    model: Callable[..., Any]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> Any:
        """Run the model."""
        return self.model(*self.args, **self.kwargs)

    @property
    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, by position and by name."""
        return tuple(self.args), dict(self.kwargs)

    @property
    def tensors(self) -> list[Tensor]:
        """The data: every tensor among the arguments, wherever it is nested."""
        return [leaf for leaf in tree_flatten(self.call)[0] if isinstance(leaf, Tensor)]

    @property
    def form(self) -> Any:
        """All else that a recording of the model depends on: the tensors' shapes, and what is not a tensor.

        Two calls of equal form can share a recording.
        """
        leaves, structure = tree_flatten(self.call)
        return [_form(leaf) for leaf in leaves], structure

    def with_data(self, tensors: Sequence[Tensor]) -> "BoundModel":
        """The same call with other tensors in the places of :attr:`tensors`.

        :raises ValueError: if there are more or fewer of them.
        """
        leaves, structure = tree_flatten(self.call)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        if len(tensors) != len(places):
            raise ValueError(
                f"expected {len(places)} tensors, as many as the model's arguments hold, got {len(tensors)}"
            )
        for place, tensor in zip(places, tensors):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, structure)
        return replace(self, args=args, kwargs=kwargs)

    def with_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> "BoundModel":
        """The same model with other arguments."""
        return replace(self, args=args, kwargs=kwargs)


def _form(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device
    return leaf if isinstance(leaf, int | float | str | None) else id(leaf)
