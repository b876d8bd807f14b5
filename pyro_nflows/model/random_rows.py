"""Plates that show a random part of their rows, held against what is asked of a prediction: whose rows these are."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .site_kinds import Site

#: What may be asked of rows' numbers without reading them; ``__get__`` is of properties, such as ``shape``.
SIZES = ("__get__", "__len__", "dim", "ndimension", "numel", "size")


class RandomRows(Messenger):
    """Watches one run of a model for plates that draw a part of their rows, and for what a model makes of them.

    In a model of minibatches, ``pyro.plate("row", N, subsample_size=len(x))`` has random rows too, but they are not
    read: the rows are those of the arguments. Where ``x[rows]`` reads them, nobody knows whose the predictions are.

    :param who: is asked; messages begin with it.
    :param draw: the latent sites whose values are given.
    :param tensors: the model's arguments.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("row", len(x), subsample_size=2) as rows:
        ...         pyro.sample("y", dist.Normal(x[rows], 1.0))
        ...
        >>> watching = RandomRows("predict", (), [torch.zeros(5)])
        >>> with watching, pyro.poutine.trace() as capture:
        ...     model(torch.zeros(5))
        ...
        >>> watching.check({"y": capture.trace.nodes["y"]})
        Traceback (most recent call last):
        ValueError: predict: plate 'row' shows a random 2 of its 5 rows in each run of the model, so it is not ...
    """

    def __init__(self, who: str, draw: Collection[str], tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self.who, self.draw, self._lengths = who, draw, {len(tensor) for tensor in tensors if tensor.dim()}
        self._reading = _Reading()
        self._drawn = set[str]()

    def __enter__(self) -> Any:
        self._reading.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._reading.__exit__(*error)

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            partial = [frame for frame in self._partial(msg) if msg["name"] in self.draw]
            if partial:
                raise self._refusal(msg["name"], partial[0])
            return
        size, shown = msg["fn"].size, msg["fn"].subsample_size
        if size == 0:
            raise ValueError(f"{self.who}: plate {msg['name']!r} has no rows at these arguments, expected at least one")
        if shown is not None and shown > size:
            raise ValueError(
                f"{self.who}: plate {msg['name']!r} shows {shown} of its rows (subsample_size={shown}), but has {size} "
                f"at these arguments; give it {shown} at least, or run a model without subsample_size"
            )
        if msg["value"] is None and shown is not None:
            self._drawn.add(msg["name"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["name"] in self._drawn:
            self._reading.rows[id(msg["value"])] = msg["name"], msg["value"]

    def check(self, sites: Mapping[str, Site]) -> None:
        """Raise a ValueError if a site has random rows.

        :param sites: of the run.
        """
        for name, site in sites.items():
            for frame in self._partial(site):
                if frame.name in self._reading.plates or frame.size not in self._lengths:
                    raise self._refusal(name, frame)

    def _partial(self, site: Any) -> list[Any]:
        frames = [frame for frame in site["cond_indep_stack"] if frame.name in self._drawn]
        return [frame for frame in frames if frame.full_size not in (None, frame.size)]

    def _refusal(self, name: str, frame: Any) -> ValueError:
        return ValueError(
            f"{self.who}: plate {frame.name!r} shows a random {frame.size} of its {frame.full_size} rows in each run "
            f"of the model, so it is not known which rows of {name!r} are drawn; run the model without subsample_size: "
            "let one of its arguments say so, and pass None for it here, or fit a model without"
        )


class _Reading(TorchFunctionMode):
    """Sees which plates' rows are used in a computation; those that are only counted are not."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, tuple[str, Tensor]] = {}
        self.plates = set[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.rows and getattr(func, "__name__", "") not in SIZES:
            self.plates |= {self.rows[id(x)][0] for x in tree_leaves((args, kwargs)) if id(x) in self.rows}
        return func(*args, **(kwargs or {}))
