"""Where in the user's own code a warning belongs."""

import contextlib
import inspect
from pathlib import Path

_PACKAGE = str(Path(__file__).parents[1])


def user_level() -> int:
    """The ``stacklevel`` that lets a warning name the first line outside of this package that led to it.

    Called in the argument of ``warnings.warn``.

    Example::

        >>> user_level()
        1
    """
    here = inspect.currentframe()
    frame, level = here and here.f_back, 1
    while frame is not None and frame.f_back is not None and _is_ours(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    return level


def _is_ours(file: str) -> bool:
    return file.startswith(_PACKAGE) or file == contextlib.__file__
