"""Compiled training steps: a recording turned into C, loops and all."""

from .build import Build, linear_library
from .compilers import CompilerError
from .scan import Run, Scan
from .store import CacheWarning

__all__ = ["Build", "CacheWarning", "CompilerError", "Run", "Scan", "linear_library"]
