"""What a run will need, begun before it is; what it may need, made safe from interrupts."""

import contextlib
from collections.abc import Iterator

from ..engine import Engine
from ..engine.compiling import foresee
from ..system.signals import imported, imported_before

#: What any run imports: for the start.
NEEDED = "scipy.optimize"
#: What torch imports for some models, with a library that takes a third of a second.
SYMBOLIC = "torch.fx.experimental.symbolic_shapes", "sympy"


@contextlib.contextmanager
def foreseen(engine: Engine | None) -> Iterator[None]:
    """Begin to compile what all compiled code shares; meanwhile, import what no interrupt may break off.

    :param engine: that was asked for, or None.

    Example::

        >>> import sys
        >>> with foreseen(None):
        ...     "scipy.optimize" in sys.modules
        True
    """
    if engine in (None, Engine.COMPILED):
        foresee()
    imported(NEEDED)
    with imported_before(*SYMBOLIC):
        yield
