r"""The checkpoint of a run: a file from which the same line, run again, goes on where it was.

While a run goes on, the file holds its journal (:mod:`~pyro_nflows.engine.journal`); when it is complete, its fit. Both
know of which arguments and settings they are, and are refused where these differ.
"""

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ..engine import Journal
from ..layers.base import Layer
from ..model.log_joint import LogJoint
from ..system.files import Path, kind_of, read, write
from .checkpoint import UNFINISHED
from .mark import put
from .posterior import Call, Posterior
from .written import KIND

#: The journal of a run that has not begun: its file may be written over by any other.
EMPTY: dict[str, Any] = {"done": [], "under_way": None}
#: Bytes of data that are read at once: these may be more than there is memory for.
AT_ONCE = 2**24
#: What to do about the checkpoint of another run.
REMEDY = "go on with what it was made with, give checkpoint another name, or remove the file to start anew"


class CheckpointWarning(UserWarning):
    """A checkpoint could not be written; the run goes on, and what was written before is still there."""


def check_file(path: Any, seconds: Any) -> None:
    """Refuse what cannot be the file that a run's state is kept in, or how often.

    :raises TypeError: if the path is none.
    :raises ValueError: if the seconds are no number from 0 on.
    """
    if path is not None and not isinstance(path, str | os.PathLike):
        raise TypeError(f"VI: checkpoint must be the path of a file, got {type(path).__name__}")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
        raise ValueError(f"VI: checkpoint_seconds must be a number from 0 on, got {seconds!r}")


class Checkpoint:
    """The file of one run.

    :param path: where.
    :param seconds: time between the moments at which it is written.
    :param settings: what the run was asked for, by name.
    :param call: the model's arguments.
    :raises ValueError: if there is a file which is no checkpoint, or one of other arguments or settings.
    """

    def __init__(self, path: Path, seconds: float, settings: Mapping[str, Any], call: Call):
        self.path, self.seconds = path, seconds
        self.described = {**{name: str(value) for name, value in settings.items()}, **described(call)}
        self.state = self._read() if os.path.lexists(path) else {}

    @property
    def fit(self) -> dict[str, Any] | None:
        """The finished fit, if there is one."""
        return self.state if "draws" in self.state else None

    @property
    def seed(self) -> int | None:
        """What the run's random numbers start from; None for a new run."""
        return self.state.get("seed")

    def journal(self, seed: int) -> Journal:
        """Of the run, as far as it has come; from now on kept in the file.

        :raises OSError: if the file cannot be written.
        """
        about = {"run": self.described, "seed": seed}
        if not self.state:  # better told of now than in an hour
            write(self.path, UNFINISHED, {**about, "journal": EMPTY})
            self.state = {"seed": seed}

        def keep(state: dict[str, Any]) -> None:
            with _told(self.path):
                write(self.path, UNFINISHED, {**about, "journal": state})

        return Journal(keep, self.seconds, self.state.get("journal"))

    def finish(self, seed: int, posterior: Posterior) -> None:
        """Put the fit into the file."""
        with _told(self.path):
            write(self.path, KIND, {**posterior.state(), "run": self.described, "seed": seed})

    def _read(self) -> dict[str, Any]:
        state = read(self.path, UNFINISHED if kind_of(self.path) == UNFINISHED else KIND, "VI: the checkpoint")
        if state.get("journal") == EMPTY:
            return {}
        then, now, name = state.get("run"), self.described, f"{os.fspath(self.path)!r}"
        if then is None:
            raise ValueError(
                f"VI: {name} is a fit that vi.save wrote, and no checkpoint; read it with VI.load, and give checkpoint "
                "another name"
            )
        for what in {**then, **now}:
            if then.get(what) != now.get(what):
                raise ValueError(
                    f"VI: the checkpoint {name} is of another run: {what} {_differs(what, then, now)}; {REMEDY}"
                )
        return state


def _differs(name: str, then: Mapping[str, str], now: Mapping[str, str]) -> str:
    if name.startswith("argument"):
        return "is another" if name in then and name in now else f"is {'there only' if name in then else 'here only'}"
    return f"was {then.get(name)}, and is {now.get(name)}"


class _told:
    """A context in which a failure to write becomes a warning."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, OSError):
            return False
        warnings.warn(
            f"the checkpoint {os.fspath(self.path)!r} could not be written ({error}); the run goes on, and the file is "
            "as it was",
            CheckpointWarning,
            stacklevel=4,
        )
        return True


def begin(journal: Journal, joint: LogJoint, layer: Layer, leaves: Sequence[Tensor], loc: Tensor) -> Tensor:
    """The first step of a run: where it starts; guide and parameters are put to where they were then.

    :param journal: of the run.
    :param joint: the model at its arguments.
    :param layer: the guide's.
    :param leaves: the model's own parameters.
    :param loc: where this process would start.
    :raises ValueError: if the model, or the guide's flow, is not that of the journal.
    """

    def here() -> dict[str, Any]:
        state = {name: value.clone() for name, value in layer.state_dict().items()}
        parameters = [leaf.detach().clone() for leaf in leaves]
        return {"layer": state, "leaves": parameters, "loc": loc, "log_p": _log_p(joint, loc)}

    def go_back(found: dict[str, Any]) -> None:
        put_back(found, layer, leaves)
        check_density(found["log_p"], _log_p(joint, found["loc"]))

    found = journal.step("begin", here, go_back)
    joint.start = cast(Tensor, found["loc"])
    return joint.start


def put_back(found: Mapping[str, Any], layer: nn.Module, leaves: Sequence[Tensor]) -> None:
    """Put a guide's layer, and the model's own parameters, to where they were.

    :raises ValueError: if they are of other shapes.
    """
    shapes = [{name: tuple(v.shape) for name, v in state.items()} for state in (found["layer"], layer.state_dict())]
    if shapes[0] != shapes[1] or len(found["leaves"]) != len(leaves):
        raise ValueError(f"VI: the checkpoint is of another model or of a guide with another flow; {REMEDY}")
    layer.load_state_dict(found["layer"])
    with torch.no_grad():
        put(leaves, found["leaves"])


def check_density(then: Tensor, now: Tensor) -> None:
    """Refuse a model whose log density at the start is another one than it was; NaN for one that is random.

    :raises ValueError: if it is.
    """
    if not (torch.isnan(then) or torch.isnan(now) or torch.allclose(then, now, rtol=1e-4, atol=1e-4)):
        raise ValueError(
            f"VI: the checkpoint is of another model: at the start its log density was {float(then):.6g}, and is "
            f"{float(now):.6g}; {REMEDY}"
        )


@torch.no_grad()
def _log_p(joint: LogJoint, loc: Tensor) -> Tensor:
    """The log density at a point; NaN where that is random."""
    first, second = (joint(loc[None])[0].double() for _ in range(2))
    return first if torch.equal(first, second) else torch.full_like(first, torch.nan)


def described(call: Call) -> dict[str, str]:
    """A digest of each of a model's arguments, by name.

    Example::

        >>> a, b = described(((torch.zeros(2),), {"x": 1})), described(((torch.ones(2),), {"x": 1}))
        >>> [name for name in a if a[name] != b[name]]
        ['argument 1']
    """
    args, kwargs = call
    named = {f"argument {i + 1}": value for i, value in enumerate(args)}
    named |= {f"argument '{name}'": value for name, value in kwargs.items()}
    return {name: _digest(value) for name, value in named.items()}


def _digest(value: Any) -> str:
    leaves, spec = tree_flatten(value)
    digest = hashlib.sha256(str(spec).encode())
    for leaf in leaves:
        for part in _bytes(leaf):
            for start in range(0, len(part), AT_ONCE):
                digest.update(part[start : start + AT_ONCE])
    return digest.hexdigest()


def _bytes(leaf: Any) -> list[bytes | memoryview]:
    """What a leaf is known by: its numbers, or, where it is an object without any, its type."""
    if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
        flat = leaf.detach().cpu().contiguous().reshape(-1)
        return [f"{leaf.dtype}{tuple(leaf.shape)}".encode(), flat.view(torch.uint8).numpy().data]
    if isinstance(leaf, bool | int | float | complex | str | bytes | None):
        return [repr(leaf).encode()]
    array = np.asarray(leaf) if hasattr(leaf, "__array__") else np.asarray(None)
    if array.dtype.hasobject:
        return [f"{type(leaf).__module__}.{type(leaf).__qualname__}".encode()]
    return [f"{array.dtype}{array.shape}".encode(), array.tobytes()]
