"""Streams that tests write to."""

import io


class Terminal(io.StringIO):
    """One that says it is a terminal."""

    def isatty(self) -> bool:
        return True
