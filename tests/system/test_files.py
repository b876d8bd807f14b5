"""Files that are whole or not there, whatever goes wrong while they are written."""

import builtins
import errno
import io
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_nflows.system import files

OLD, NEW = {"x": torch.arange(3.0)}, {"x": torch.arange(1000.0), "more": ["a", 1, None]}


def held(path: Path) -> dict[str, Any]:
    return files.read(path, "fit", "load")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    files.write(tmp_path / "x.pt", "fit", NEW)
    assert torch.equal(held(tmp_path / "x.pt")["x"], NEW["x"])
    assert held(tmp_path / "x.pt")["more"] == NEW["more"]
    assert files.kind_of(tmp_path / "x.pt") == "fit"
    assert os.listdir(tmp_path) == ["x.pt"]


# ---- what goes wrong while writing --------------------------------------------------------------------------


class Full(io.FileIO):
    """A file on a disk that is full after so many bytes."""

    room = 100

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self.room:
            super().write(bytes(data)[: self.room])
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_a_full_disk_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pt"
    files.write(path, "fit", OLD)
    real = builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda file, mode="r", *a: Full(file, mode) if "w" in mode else real(file, mode)
    )
    with pytest.raises(OSError, match="No space left"):
        files.write(path, "fit", NEW)
    monkeypatch.undo()
    assert torch.equal(held(path)["x"], OLD["x"])
    assert os.listdir(tmp_path) == ["x.pt"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "bad disk"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("name", ["open", "fsync", "replace", "chmod", "close"])
def test_a_failure_at_any_call_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException
) -> None:
    path = tmp_path / "x.pt"
    files.write(path, "fit", OLD)

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(os, name, fails)
    with pytest.raises(type(error)):
        files.write(path, "fit", NEW)
    monkeypatch.undo()
    assert torch.equal(held(path)["x"], OLD["x"])
    if name != "close":  # the fake left it open
        assert os.listdir(tmp_path) == ["x.pt"]


def test_a_folder_that_cannot_be_synchronised_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, synced = os.fsync, []

    def fsync(handle: int) -> None:
        synced.append(handle)
        if len(synced) > 1:
            raise OSError(errno.EINVAL, "not a file")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    files.write(tmp_path / "x.pt", "fit", NEW)
    assert len(synced) == 2
    assert torch.equal(held(tmp_path / "x.pt")["x"], NEW["x"])


WRITER = """
    import sys, torch
    from pyro_nflows.system import files
    print("ready", flush=True)
    for i in range(10**6):
        files.write(sys.argv[1], "fit", {"x": torch.full((300_000,), float(i))})
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path, times = tmp_path / "x.pt", random.Random(0)
    files.write(path, "fit", {"x": torch.zeros(3)})
    for _ in range(3):
        command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                writer.wait(times.uniform(0.05, 0.3))
            writer.kill()
        x = held(path)["x"]
        assert bool((x == x[0]).all())


def test_what_killed_writers_left_is_removed_in_time(tmp_path: Path) -> None:
    fresh, stale, other = (tmp_path / name for name in (".x.pt.part-1", ".x.pt.part-2", ".y.pt.part-3"))
    for file in (fresh, stale, other):
        file.write_text("half")
    for file in (stale, other):
        os.utime(file, (1, 1))
    files.write(tmp_path / "x.pt", "fit", NEW)
    assert sorted(os.listdir(tmp_path)) == [".x.pt.part-1", ".y.pt.part-3", "x.pt"]


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_permissions_and_links_are_kept(tmp_path: Path) -> None:
    path, link, before = tmp_path / "x.pt", tmp_path / "link.pt", os.umask(0o027)
    try:
        files.write(path, "fit", OLD)
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o604)
        link.symlink_to(path)
        files.write(link, "fit", NEW)
    finally:
        os.umask(before)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o604
    assert torch.equal(held(path)["x"], NEW["x"])


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder '.*missing' to write 'x.pt' into; make it first"):
        files.write(tmp_path / "missing" / "x.pt", "fit", NEW)


# ---- what is wrong with a file ------------------------------------------------------------------------------


def cut(body: bytes, share: float) -> bytes:
    return body[: int(share * len(body))]


def changed(body: bytes, share: float) -> bytes:
    at = int(share * len(body))
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def with_format(body: bytes, number: int) -> bytes:
    return re.sub(rb"format \d+", f"format {number}".encode(), body, count=1)


DAMAGE: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda body: b"", "is empty"),
    (lambda body: cut(body, 0.5), r"is cut short: it has \d+ of \d+ bytes"),
    (lambda body: body[:-1], "is cut short: it has"),
    (lambda body: body[:20], "is cut short in its first line"),
    (lambda body: body + b"x", "bytes, so it was not copied whole"),
    (lambda body: changed(body, 0.5), "is damaged: its checksum does not match"),
    (lambda body: changed(body, 0.99), "is damaged: its checksum does not match"),
    (lambda body: b"dear diary,\n" + body, "is no file of pyro_nflows; expected one that vi.save wrote"),
    (lambda body: bytes(range(256)) * 4, "is no file of pyro_nflows"),
    (lambda body: with_format(body, 0), "by an older version of pyro_nflows, in format 0; this version reads"),
    (lambda body: with_format(body, files.FORMAT + 1), "by a newer version .* update pyro_nflows"),
    (lambda body: body.replace(b"pyro_nflows fit", b"pyro_nflows cup"), "is a cup of pyro_nflows, expected a fit"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[message[:25] for _, message in DAMAGE])
def test_a_bad_file_is_told_for_what_it_is(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    path = tmp_path / "x.pt"
    files.write(path, "fit", NEW)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"load: '.*x.pt' .*{message}"):
        held(path)


def test_other_files_of_torch_and_zips_are_told_apart(tmp_path: Path) -> None:
    torch.save({"x": 1}, tmp_path / "torch.pt")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("hello", "there")
    for name in ("torch.pt", "zip.pt"):
        with pytest.raises(
            ValueError, match=r"is a zip archive: another file of torch.save, or a fit that was saved by"
        ):
            held(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        held(tmp_path / "none.pt")


class Planted:
    def __reduce__(self) -> Any:
        return os.mkdir, ("planted",)


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its checksum is right."""
    monkeypatch.chdir(tmp_path)
    files.write("x.pt", "fit", {"x": Planted()})
    with pytest.raises(ValueError, match="holds what is not tensors and plain values"):
        files.read("x.pt", "fit", "load")
    assert os.listdir() == ["x.pt"]
