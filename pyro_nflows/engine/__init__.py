"""How training is run: a pure step, and backends that run it."""

from .ascent import ascend
from .backends import EngineWarning, prepare
from .history import History
from .journal import Journal
from .native import CacheWarning
from .program import Inputs, Program, State
from .round import Round
from .runners import Engine, Runner
from .sampler import Sampler, sample
from .slope import ROWS, Slope
from .start import Gaussian, best_of, best_start
from .trainer import Trainer

__all__ = [
    "ROWS",
    "CacheWarning",
    "Engine",
    "EngineWarning",
    "Gaussian",
    "History",
    "Inputs",
    "Journal",
    "Program",
    "Round",
    "Runner",
    "Sampler",
    "Slope",
    "State",
    "Trainer",
    "ascend",
    "best_of",
    "best_start",
    "prepare",
    "sample",
]
