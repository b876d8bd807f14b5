"""What any run will need, begun before it is: it would be waited for later."""

from ..engine import Engine
from ..engine.compiling import foresee
from ..system.signals import imported

#: What a run imports on its way: gradients of torch's, and the start.
NEEDED = "torch.fx.experimental.symbolic_shapes", "scipy.optimize"


def foreseen(engine: Engine | None) -> None:
    """Begin to compile what all compiled code shares; meanwhile, import what no interrupt may break off.

    :param engine: that was asked for, or None.

    Example::

        >>> foreseen(None)
    """
    if engine in (None, Engine.COMPILED):
        foresee()
    imported(*NEEDED)
