r"""What users hand to ``VI``, checked."""

import os
from typing import Any

from ..engine import Engine
from ..guides import AutoFlow
from .elbo import ELBO


def check_arguments(guide: Any, objective: Any, engine: Any, annealing: Any, seed: Any, name: str = "VI") -> None:
    """Refuse what ``VI`` and its kin cannot work with.

    :raises TypeError: if an argument has the wrong type.
    :raises ValueError: if it has a value out of range.
    """
    if not isinstance(guide, AutoFlow):
        raise TypeError(
            f"{name}: expected a flow guide, {name}(AutoFlow(model)), got {type(guide).__name__}; "
            "other Pyro guides train with pyro.infer.SVI"
        )
    if objective is not None and not isinstance(objective, ELBO):
        raise TypeError(f"{name}: objective must be a pyro_nflows ELBO or IWAE, got {type(objective).__name__}")
    if engine is not None and engine not in [e.value for e in Engine]:
        raise ValueError(f"{name}: engine must be one of {[e.value for e in Engine]}, got {engine!r}")
    if not isinstance(annealing, int | float) or not 0 <= annealing <= 1:
        raise ValueError(f"{name}: annealing is a share of the steps, from 0 to 1, got {annealing!r}")
    if seed is not None and not isinstance(seed, int):
        raise TypeError(f"{name}: expected seed to be an integer or None, got {type(seed).__name__}")


def check_checkpoint(path: Any, seconds: Any) -> None:
    """The file that a run's state is kept in, and how often.

    :raises TypeError: if the path is none.
    :raises ValueError: if the seconds are no number from 0 on.
    """
    if path is not None and not isinstance(path, str | os.PathLike):
        raise TypeError(f"VI: checkpoint must be the path of a file, got {type(path).__name__}")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
        raise ValueError(f"VI: checkpoint_seconds must be a number from 0 on, got {seconds!r}")
