"""Compiled training steps: a recording turned into C, loops and all."""

from .build import Build, CompilerError
from .scan import Run, Scan

__all__ = ["Build", "CompilerError", "Run", "Scan"]
