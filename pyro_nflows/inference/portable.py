r"""A fitted ``VI`` as bytes, for other processes: the guide, and the model with its data where they can be pickled."""

import contextlib
import pickle
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, cast

from pyro.infer.autoguide import init_to_median

from ..guides import AutoFlow

#: Modules that pickle functions without a name; whoever uses one has imported it.
STRONGER = ("cloudpickle", "joblib.externals.cloudpickle")


#: The model, its arguments and ``init_loc_fn``, where all that is sent has the same ones.
_at_hand: ContextVar[tuple[Any, Any, Any] | None] = ContextVar("_at_hand", default=None)


@contextlib.contextmanager
def at_hand(guide: AutoFlow, call: Any) -> Iterator[None]:
    """Within it guides that are sent, or were, have this one's model and these arguments."""
    token = _at_hand.set((guide.bare_model, call, guide.init_loc_fn))
    try:
        yield
    finally:
        _at_hand.reset(token)


def sendable(guide: AutoFlow, call: Any) -> dict[str, Any]:
    """As :func:`packed`; without what is at hand on the other side."""
    if _at_hand.get() is None:
        return packed(guide, call)
    return {"_packed": (pickle.dumps(guide), b"", b"")}


def packed(guide: AutoFlow, call: Any) -> dict[str, Any]:
    """A guide, its model and the model's arguments, as bytes each.

    :raises TypeError: if the guide cannot be pickled.
    """
    try:
        alone = pickle.dumps(guide)
    except Exception as error:
        raise TypeError(
            f"this VI cannot be pickled, because its {type(guide).__name__} cannot ({error}); write it to a file with "
            "vi.save(path), and have it again with VI.load(path, guide, *args)"
        ) from error
    model = guide.bare_model if guide.has_model else None
    return {"_packed": (alone, _bytes((model, call)), _bytes(guide.init_loc_fn))}


def is_packed(state: dict[str, Any]) -> bool:
    """Whether there is something to unpack."""
    return "_packed" in state


def unpacked(state: dict[str, Any]) -> tuple[AutoFlow, Any, str]:
    """The guide, the arguments if they and the model came along, and why not if they did not."""
    alone, model_and_call, init_loc_fn = state.pop("_packed")
    guide, known = cast(AutoFlow, pickle.loads(alone)), _at_hand.get()
    if not model_and_call and known is not None:
        model, call, start = known
        guide.give_model(model, start)
        guide.receive(*call)
        return guide, call, ""
    try:
        model, call = pickle.loads(model_and_call)
    except Exception as error:
        return guide, None, f"was unpickled without its model and data, which could not be pickled ({error})"
    if model is None:
        return guide, None, "was unpickled without its model"
    guide.give_model(model, _loaded(init_loc_fn))
    if call is not None:
        guide.receive(*call)
    return guide, call, "was pickled without its data"


def _bytes(thing: Any) -> bytes:
    """A pickle; of nothing, with the reason, where there can be none."""
    try:
        return pickled(thing)
    except UnpicklableError as error:
        return pickle.dumps(_Missing(str(error)))


class UnpicklableError(TypeError):
    """Something cannot be pickled; the message is the first reason why."""


def pickled(thing: Any) -> bytes:
    """A pickle by Python's own, or by a stronger one that is there.

    :raises UnpicklableError: if there can be none.
    """
    reason: Exception | None = None
    for dumps in _ways_to_pickle():
        try:
            return dumps(thing)
        except Exception as error:
            reason = reason or error
    raise UnpicklableError(str(reason)) from reason


def _ways_to_pickle() -> Iterator[Callable[[Any], bytes]]:
    """Python's own, and stronger ones that are there."""
    yield pickle.dumps
    for name in STRONGER:
        if name in sys.modules:
            yield sys.modules[name].dumps


class _Missing:
    """Stands for what could not be pickled: raises the reason when it is unpickled."""

    def __init__(self, reason: str):
        self.reason = reason

    def __reduce__(self) -> Any:
        return _refuse, (self.reason,)


def _refuse(reason: str) -> None:
    raise TypeError(reason)


def _loaded(init_loc_fn: bytes) -> Callable[..., Any]:
    with contextlib.suppress(Exception):
        return cast(Callable[..., Any], pickle.loads(init_loc_fn))
    return init_to_median
