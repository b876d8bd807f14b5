"""A call of a model with other arguments than it takes, told as such."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from .constants import signature_of


@contextlib.contextmanager
def told(name: str, model: Callable[..., Any], args: Any, kwargs: Any) -> Iterator[None]:
    """Within it, a model that is run with other arguments than it takes raises an error that says so.

    :param name: of the guide.
    :param model: the Pyro model.
    :param args: its arguments, with ``kwargs``.
    :raises TypeError: in the place of Python's own.

    Example::

        >>> def model(y):
        ...     pass
        ...
        >>> with told("AutoFlow", model, (), {}):
        ...     model()
        Traceback (most recent call last):
        TypeError: AutoFlow: the model takes (y), and was run without any argument; ...
    """
    try:
        yield
    except TypeError as error:
        misfit = _misfit(model, args, kwargs)
        if misfit is None:
            raise
        raise TypeError(f"{name}: {misfit}") from error


def _misfit(model: Callable[..., Any], args: Any, kwargs: Any) -> str | None:
    """What to say where the arguments are not those that the model takes; None where they are."""
    try:
        signature = signature_of(model)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        given = [f"{len(args)} by position"] * bool(args) + [f"{', '.join(kwargs)} by name"] * bool(kwargs)
        without = "was run without any argument" if not given else f"got {' and '.join(given)} ({error})"
        return (
            f"the model takes {signature}, and {without}; give it its arguments, as in guide(*args), vi.run(*args) or "
            "VI.load(path, guide, *args)"
        )
    return None
