"""The folder of compiled code, and what in it can be trusted.

Whoever can write to a folder from which code is loaded can run code as its user. So the folder must belong to the
user, be no symbolic link, and be writable for nobody else; if it is not so, a private temporary one is used, and a
warning says why. Beside the code lies a secret of random bytes that only the user can read. Each file begins with a
digest of its name and its code, keyed with that secret (HMAC with SHA-256). A file that was cut, changed, renamed or
planted does not have the right digest: it is deleted, and compiled anew with a line of warning. What is loaded is a
private copy of the very bytes that were checked.
"""

import atexit
import contextlib
import functools
import hashlib
import hmac
import os
import secrets
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .compilers import positive

#: So many files and megabytes are kept; what has not been used for longest goes first.
MAX_FILES, MAX_MEGABYTES = 300, 200.0
#: Folders of compilations that were killed are removed after an hour, or after a day if a process has their number.
STALE, VERY_STALE = 3600.0, 86400.0
_SUFFIX, _SECRET = ".compiled", "secret"
_MAGIC, _DIGEST = b"pyro_nflows compiled code, 1\n", 32
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


class CacheWarning(UserWarning):
    """Compiled code on disk, or its folder, cannot be trusted and is not used."""


class Entry(NamedTuple):
    """A file of compiled code: its size in bytes, seconds since it was last used, and whether its digest is right."""

    name: str
    size: int
    age: float
    is_sound: bool


class Store:
    """Compiled code in a folder.

    :param folder: one that :func:`distrust` says nothing against.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, key: str) -> Path:
        """Where the code with that key is, or would be."""
        return self.folder / (key + _SUFFIX)

    def read(self, key: str) -> bytes | None:
        """Code that is what was written; None if there is none. What is not is deleted, with a warning."""
        path = self.path(key)
        try:
            return self._checked(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.discard(key, str(error))
            return None

    def discard(self, key: str, reason: str) -> None:
        """Delete a file, and say why."""
        path = self.path(key)
        with contextlib.suppress(OSError):
            path.unlink()
        text = f"compiled code {path} is not used ({reason}); it was deleted, and is compiled anew"
        warnings.warn(text, CacheWarning, stacklevel=2)

    def write(self, key: str, code: bytes) -> None:
        """Keep code, all of it or nothing; then delete what is too much.

        :raises OSError: if it cannot be written.
        """
        path = self.path(key)
        digest = _digest(self._secret(make=True), path.name, code)
        self._put(path, _MAGIC + digest + code)
        self._prune(path)

    def touch(self, key: str) -> None:
        """Note that it was used."""
        with contextlib.suppress(OSError):
            os.utime(self.path(key))

    def workspace(self) -> Path:
        """A new folder for a compilation; those of processes that were killed are removed."""
        for old in self.folder.glob("build_*"):
            if _is_stale(old):
                shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=f"build_{os.getpid()}_", dir=self.folder))

    def entries(self) -> list[Entry]:
        """What is kept, used last first."""
        found, now = [], time.time()
        for path in self._files():
            with contextlib.suppress(OSError):
                info = path.lstat()
                found.append(Entry(path.name, info.st_size, now - info.st_mtime, self._is_sound(path)))
        return sorted(found, key=lambda entry: entry.age)

    def clear(self) -> int:
        """Delete all code, the secret, and the folders of compilations; how many files of code there were."""
        files = list(self._files())
        for path in [*files, self.folder / _SECRET]:
            path.unlink(missing_ok=True)
        for path in self.folder.glob("build_*"):
            shutil.rmtree(path, ignore_errors=True)
        return len(files)

    def _files(self) -> Iterator[Path]:
        return self.folder.glob("*" + _SUFFIX)

    def _is_sound(self, path: Path) -> bool:
        try:
            self._checked(path)
        except (OSError, ValueError):
            return False
        return True

    def _checked(self, path: Path) -> bytes:
        """A file's code.

        :raises ValueError: if it is not what was written.
        """
        content = _read(path)
        head, digest, code = content[: len(_MAGIC)], content[len(_MAGIC) :][:_DIGEST], content[len(_MAGIC) + _DIGEST :]
        try:
            secret = self._secret()
        except FileNotFoundError as error:
            raise ValueError("the secret that its digest was made with is gone") from error
        if head != _MAGIC or not hmac.compare_digest(digest, _digest(secret, path.name, code)):
            raise ValueError("its digest is wrong: it was cut or changed")
        return code

    def _secret(self, make: bool = False) -> bytes:
        """The folder's secret.

        :raises FileNotFoundError, ValueError: if there is none that is right, and none is to be made.
        """
        path = self.folder / _SECRET
        try:
            return _read(path, size=_DIGEST, private=True)
        except FileNotFoundError:
            if not make:
                raise
        except ValueError:
            if not make:
                raise
            path.unlink(missing_ok=True)
        self._put(path, secrets.token_bytes(_DIGEST), replace=False)
        return _read(path, size=_DIGEST, private=True)

    def _put(self, path: Path, content: bytes, replace: bool = True) -> None:
        """Write a file at once; without ``replace``, the first of several processes has its way."""
        work = Path(tempfile.mkdtemp(prefix=f"build_{os.getpid()}_", dir=self.folder))
        try:
            new = work / path.name
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.replace(new, path)
            else:
                _link(new, path)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _prune(self, kept: Path) -> None:
        megabytes = positive("PYRO_NFLOWS_CACHE_MB", MAX_MEGABYTES)
        with contextlib.suppress(OSError):
            files = sorted(((f.lstat().st_mtime, f.lstat().st_size, f) for f in self._files()), reverse=True)
            total = 0
            for i, (_, size, path) in enumerate(files):
                total += size
                if path != kept and (i >= MAX_FILES or total > 1e6 * megabytes):
                    path.unlink(missing_ok=True)


def wanted() -> Path:
    """The folder that is used if it can be: ``$PYRO_NFLOWS_CACHE``, or ``pyro_nflows`` in the user's cache folder."""
    named = os.environ.get("PYRO_NFLOWS_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named).absolute() if named else home / "pyro_nflows"


def store() -> Store:
    """The compiled code of this user: that on disk, or this process's own where nothing on disk can be trusted."""
    try:
        folder = wanted()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        reason = distrust(folder)
    except (OSError, RuntimeError):  # no home, or none that can be written
        return Store(_temporary())
    if reason is not None:
        _tell(folder, reason)
        return Store(_temporary())
    return Store(folder if os.access(folder, os.W_OK) else _temporary())


def distrust(folder: Path) -> str | None:
    """Why no code is loaded from a folder; None if it may be."""
    info = folder.lstat()
    if stat.S_ISLNK(info.st_mode):
        return "it is a symbolic link; name the folder itself"
    if not stat.S_ISDIR(info.st_mode):
        return "it is not a folder"
    if not _is_ours(info):
        return "it belongs to another user"
    if info.st_mode & 0o022:
        return f"others can write to it; chmod 700 {folder} would change that"
    return None


def _is_ours(info: os.stat_result) -> bool:
    return not hasattr(os, "getuid") or info.st_uid == os.getuid()


@functools.cache
def _tell(folder: Path, reason: str) -> None:
    text = f"no compiled code is kept in {folder}: {reason}. A temporary folder is used, for this process alone"
    warnings.warn(text, CacheWarning, stacklevel=2)


@functools.cache
def _temporary() -> Path:
    folder, owner = Path(tempfile.mkdtemp(prefix="pyro_nflows_")), os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    return folder


def _digest(secret: bytes, name: str, code: bytes) -> bytes:
    return hmac.new(secret, name.encode() + b"\0" + code, hashlib.sha256).digest()


def _read(path: Path, size: int | None = None, private: bool = False) -> bytes:
    """An ordinary file of the user's own.

    :raises ValueError: if it is something else.
    """
    with open(os.open(path, _READ), "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode) or not _is_ours(info):
            raise ValueError("it is not a file of this user's")
        content = file.read()
    if (private and info.st_mode & 0o077) or (size is not None and len(content) != size):
        raise ValueError("the secret that its digest was made with is not as it was written")
    return content


def _link(new: Path, path: Path) -> None:
    """Give a file another name, if that is not taken."""
    try:
        os.link(new, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        os.replace(new, path)


def _is_stale(folder: Path) -> bool:
    """Whether the compilation in it was killed."""
    try:
        age = time.time() - folder.lstat().st_mtime
    except OSError:
        return False
    number = folder.name.split("_")[1]
    return age > VERY_STALE or (age > STALE and not (number.isdigit() and _is_alive(int(number))))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
