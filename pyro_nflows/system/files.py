r"""Files that are whole or not there: written beside and put in place at once, with a checksum and a format version.

A file is a line of text that says what it is, and what :func:`torch.save` made of tensors and plain values. What is
read back is checked against the line first, and then loaded with ``weights_only=True``: nothing in it is run.
"""

import contextlib
import hashlib
import io
import os
import re
import secrets
import time
from collections.abc import Iterator
from typing import Any

import torch

Path = str | os.PathLike[str]

#: Of what is written; to be raised whenever older versions of this package could not read it.
FORMAT = 1
#: Seconds after which an unfinished file was left behind by a process that was killed.
STALE = 3600.0
_HEADER = re.compile(rb"pyro_nflows (\w+), format (\d+), (\d+) bytes, sha256 ([0-9a-f]{64})\n")


def check_path(who: str, path: Any) -> None:
    """Whether this can be the path of a file.

    :raises TypeError: if it is no path.
    :raises OSError: if it is that of a folder.

    Example::

        >>> check_path("load", 3)
        Traceback (most recent call last):
        TypeError: load: expected the path of a file, got 3
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise TypeError(f"{who}: expected the path of a file, got {path!r}")
    if os.path.isdir(path):
        raise IsADirectoryError(f"{who}: {os.fspath(path)!r} is a folder; expected the path of a file in it")


def write(path: Path, kind: str, content: dict[str, Any]) -> None:
    """Put a file in place of whatever is at a path; that stays as it was if anything goes wrong.

    :param path: a symbolic link stays one.
    :param kind: a word that says what the file is.
    :param content: tensors and plain values.
    :raises OSError: if the file cannot be written.

    Example::

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(f"{folder}/x.pt", "example", {"x": torch.zeros(2)})
        ...     read(f"{folder}/x.pt", "example", "load")
        {'x': tensor([0., 0.])}
    """
    check_path("save", path)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    body = buffer.getbuffer()
    head = f"pyro_nflows {kind}, format {FORMAT}, {len(body)} bytes, sha256 {hashlib.sha256(body).hexdigest()}\n"
    target = os.path.realpath(os.fspath(path))
    with _beside(target) as beside:
        with open(beside, "wb") as file:
            file.write(head.encode())
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    _settle(os.path.dirname(target))


def read(path: Path, kind: str, who: str) -> dict[str, Any]:
    """What :func:`write` wrote.

    :param path: the file.
    :param kind: what it must be.
    :param who: is reading, for the message.
    :raises OSError: if there is no such file, or it cannot be read.
    :raises ValueError: if it is empty, cut, damaged, of another kind or format, or no file of this package.
    """
    with open(path, "rb") as file:
        head = file.readline(200)
        found = _understood(head, kind, f"{who}: {os.fspath(path)!r}")
        body = file.read()
    if len(body) != int(found[3]):
        raise ValueError(
            f"{who}: {os.fspath(path)!r} is cut short: it has {len(body)} of {int(found[3])} bytes, so it was not "
            "copied whole; copy it again, or fit again"
        )
    if hashlib.sha256(body).hexdigest() != found[4].decode():
        raise ValueError(
            f"{who}: {os.fspath(path)!r} is damaged: its checksum does not match; copy it again, or fit again"
        )
    device = None if torch.cuda.is_available() else "cpu"
    try:
        content: dict[str, Any] = torch.load(io.BytesIO(body), map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(f"{who}: {os.fspath(path)!r} holds what is not tensors and plain values: {error}") from error
    return content


def kind_of(path: Path) -> str | None:
    """What a file says that it is; None if it does not say so in the way that :func:`write` does.

    :raises OSError: if there is no such file, or it cannot be read.
    """
    with open(path, "rb") as file:
        found = _HEADER.fullmatch(file.readline(200))
    return found and found[1].decode()


def _understood(head: bytes, kind: str, where: str) -> "re.Match[bytes]":
    """The parts of a file's first line."""
    found = _HEADER.fullmatch(head)
    if found is None:
        raise ValueError(f"{where} {_what_it_is(head)}")
    if int(found[2]) != FORMAT:
        age, remedy = ("an older", "fit again") if int(found[2]) < FORMAT else ("a newer", "update pyro_nflows")
        raise ValueError(
            f"{where} was written by {age} version of pyro_nflows, in format {int(found[2])}; this version reads "
            f"format {FORMAT}; {remedy}"
        )
    if found[1] != kind.encode():
        raise ValueError(f"{where} is a {found[1].decode()} of pyro_nflows, expected a {kind}")
    return found


def _what_it_is(head: bytes) -> str:
    """Of a file that :func:`write` did not write, by its first bytes."""
    if not head:
        return "is empty: whatever wrote it was stopped before it began; write it again"
    if head.startswith(b"pyro_nflows"):
        return "is cut short in its first line, so it was not copied whole; copy it again, or fit again"
    if head.startswith(b"PK"):
        return (
            "is a zip archive: another file of torch.save, or a fit that was saved by a version of pyro_nflows before "
            "files had a format; fit again, and save with vi.save"
        )
    return "is no file of pyro_nflows; expected one that vi.save wrote"


@contextlib.contextmanager
def _beside(target: str) -> Iterator[str]:
    """A new empty file in the same folder, with the permissions of the target; removed at the end."""
    folder, name = os.path.split(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"no folder {folder!r} to write {name!r} into; make it first")
    _sweep(folder, name)
    beside = os.path.join(folder, f"{_prefix(name)}{secrets.token_hex(8)}")
    os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        with contextlib.suppress(FileNotFoundError):
            os.chmod(beside, os.stat(target).st_mode & 0o777)
        yield beside
    finally:
        with contextlib.suppress(FileNotFoundError):  # it is in its place
            os.unlink(beside)


def _prefix(name: str) -> str:
    return f".{name[:100]}.part-"


def _sweep(folder: str, name: str) -> None:
    """Remove what killed processes left half written."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name.startswith(_prefix(name)) and time.time() - entry.stat().st_mtime > STALE:
                os.unlink(entry.path)


def _settle(folder: str) -> None:
    """See to it that a replaced file outlives a power cut, where folders can be synchronised."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
