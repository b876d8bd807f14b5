"""How training is run: a pure step, and backends that run it."""

from .all_rows import AllRows
from .backends import EngineWarning, prepare
from .budget import Budget, OutOfTime, Stretch
from .density_gradient import ROWS, DensityGradient
from .history import History
from .journal import Journal, copied
from .look import Callback, CallbackWarning, Look, Watch
from .native import CacheWarning
from .optimised import Choice, Optim
from .program import Inputs, Program, State
from .progress import Progress
from .recurrences import CompiledRecurrence
from .round import Round
from .row_course import RowCourse
from .runners import Engine, Runner
from .sampler import Sampler, sample
from .threads import threads_for
from .trainer import Trainer
from .work import work_of

__all__ = [
    "ROWS",
    "AllRows",
    "Budget",
    "CacheWarning",
    "Callback",
    "CallbackWarning",
    "Choice",
    "CompiledRecurrence",
    "DensityGradient",
    "Engine",
    "EngineWarning",
    "History",
    "Inputs",
    "Journal",
    "Look",
    "Optim",
    "OutOfTime",
    "Program",
    "Progress",
    "Round",
    "RowCourse",
    "Runner",
    "Sampler",
    "State",
    "Stretch",
    "Trainer",
    "Watch",
    "copied",
    "prepare",
    "sample",
    "threads_for",
    "work_of",
]
