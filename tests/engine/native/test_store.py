"""Compiled code on disk: found again, bounded, and never loaded unless it is what was written."""

import contextlib
import errno
import os
import platform
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pyro_nflows import ELBO
from pyro_nflows.engine import Engine, EngineWarning, Round, Trainer, backends, cache
from pyro_nflows.engine.native import Build, CacheWarning, CompilerError, build, store
from pyro_nflows.engine.native.compilers import compiler
from pyro_nflows.layers import LocScale
from pyro_nflows.layers.base import Chain
from pyro_nflows.objectives.base import Gradient

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C compiler")
SOURCE = '#include "support.h"\nint answer(void) {{ return {}; }}\n'
#: Loads the builder without the rest of the package, which takes seconds to import.
ALONE = f"""
import sys, types
root = {str(Path(build.__file__).parents[2])!r}
for path in ("", "/engine", "/engine/native"):
    name = "pyro_nflows" + path.replace("/", ".")
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [root + path]
from pyro_nflows.engine.native.build import Build
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache that nothing has been loaded from."""
    monkeypatch.setenv("PYRO_NFLOWS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_LOADED", {})
    monkeypatch.setattr(build, "_SHARED", {})
    monkeypatch.setattr(build, "_LEFT", {})
    store._tell.cache_clear()
    store._temporary.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def another_process(monkeypatch):
    """What has been loaded is forgotten."""
    return lambda: monkeypatch.setattr(build, "_LOADED", {})


def code(folder):
    return sorted(folder.glob("*.compiled"))


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".compiled" and path.name != "secret")


def fake_compiler(tmp_path, monkeypatch, script):
    path = tmp_path / "fake-cc"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))
    build.compiler.cache_clear()


@pytest.fixture
def compiler_is(tmp_path, monkeypatch):
    yield lambda script: fake_compiler(tmp_path, monkeypatch, script)
    monkeypatch.undo()
    build.compiler.cache_clear()


def num_processes(marker):
    """Processes with these words among their arguments."""
    if shutil.which("ps") is None:
        pytest.skip("no ps")
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.count(marker)


def soon(condition):
    """Whether it comes to hold: what is killed takes a moment to die, and a thread to see it."""
    until = time.monotonic() + 20.0
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


def stop_all():
    """Compilers that nobody waits for."""
    for made in (*build._SHARED.values(), *build._LEFT.values()):
        made.cancel()


# ---- found again, and bounded -------------------------------------------------------------------------------------


def test_compiled_code_is_kept_and_found_again(folder, another_process):
    first = Build(SOURCE.format(41))
    assert not first.cached
    assert first.load().answer() == 41
    for _ in range(2):
        again = Build(SOURCE.format(41))
        assert again.cached
        assert again.is_ready
        assert again.load().answer() == 41
        another_process()
    assert len(code(folder)) == 1
    assert leftovers(folder) == []


def test_the_folder_and_its_secret_are_for_the_user_alone(folder):
    Build(SOURCE.format(40)).load()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "secret").stat().st_mode & 0o777 == 0o600
    assert code(folder)[0].stat().st_mode & 0o777 == 0o600


def test_what_was_used_longest_ago_goes_when_there_are_too_many_files(folder, monkeypatch):
    monkeypatch.setattr(store, "MAX_FILES", 2)
    for i in range(4):
        made = Build(SOURCE.format(i))
        made.load()
        for path in code(folder):
            os.utime(path, (time.time() - 100, path.stat().st_mtime - 100))
    assert len(code(folder)) == 2
    assert store.Store(folder).path(made.key) in code(folder)


def test_what_was_used_longest_ago_goes_when_there_are_too_many_bytes(folder, monkeypatch):
    Build(SOURCE.format(0)).load()
    size = code(folder)[0].stat().st_size
    monkeypatch.setenv("PYRO_NFLOWS_CACHE_MB", str(2.5 * size / 1e6))
    for i in range(1, 5):
        Build(SOURCE.format(i)).load()
    assert len(code(folder)) == 2
    monkeypatch.setenv("PYRO_NFLOWS_CACHE_MB", "1e-6")
    Build(SOURCE.format(9)).load()
    assert len(code(folder)) == 1  # the one just made


@pytest.mark.parametrize("name", ["PYRO_NFLOWS_CACHE_MB", "PYRO_NFLOWS_COMPILE_SECONDS"])
@pytest.mark.parametrize("value", ["many", "-1", "0", "nan", "inf"])
def test_settings_that_are_no_numbers_above_zero_are_refused_by_name(folder, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(CompilerError, match=f"{name} must be a number above zero, got '{value}'"):
        Build(SOURCE.format(1))


def test_arguments_of_the_compiler_are_part_of_the_key(folder, monkeypatch):
    keys = []
    for flags in ("", "-O1", "-O1 -DX='a b'"):
        monkeypatch.setenv("PYRO_NFLOWS_CFLAGS", flags)
        made = Build(SOURCE.format(3))
        assert made.load().answer() == 3
        keys.append(made.key)
    assert len(set(keys)) == 3
    monkeypatch.setenv("PYRO_NFLOWS_CFLAGS", "-DX='a")
    with pytest.raises(CompilerError, match="PYRO_NFLOWS_CFLAGS cannot be split"):
        Build(SOURCE.format(3))


LOWEST = {"x86_64": "-march=x86-64", "aarch64": "-march=armv8-a"}


@pytest.mark.skipif(platform.machine() not in LOWEST, reason="no lower -march is known for this processor")
def test_code_for_the_oldest_processors_is_right_too(tmp_path):
    which = "accurate or powers or sigmoids or affine or batches or solving or factors or picking or wide or whatever"
    environment = {**os.environ, "PYRO_NFLOWS_CFLAGS": LOWEST[platform.machine()]}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        which,
        "tests/engine/native/test_scan.py",
    ]
    root = Path(build.__file__).parents[3]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout


# ---- trusted ------------------------------------------------------------------------------------------------------


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def change(path):
    content = bytearray(path.read_bytes())
    for i in range(100, len(content), 97):
        content[i] ^= 0xFF
    path.write_bytes(content)


def change_one_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def plant(path):
    """Somebody's code, with a digest made by somebody's secret."""
    elsewhere = path.parent / "elsewhere"
    elsewhere.mkdir()
    other = store.Store(elsewhere)
    other.write(path.name.removesuffix(".compiled"), b"code")
    os.replace(other.path(path.name.removesuffix(".compiled")), path)
    for file in elsewhere.iterdir():
        file.unlink()
    elsewhere.rmdir()


def rename(path):
    """Right code under another's name."""
    Build(SOURCE.format(77)).load()
    (other,) = (file for file in code(path.parent) if file != path)
    os.replace(other, path)


def link(path):
    os.replace(path, path.parent / "target")
    path.symlink_to(path.parent / "target")


DAMAGES = {
    "cut": cut,
    "changed": change,
    "changed in one bit": change_one_bit,
    "empty": lambda path: path.write_bytes(b""),
    "planted": plant,
    "renamed": rename,
    "linked": link,
    "without a secret": lambda path: (path.parent / "secret").unlink(),
    "with another secret": lambda path: (path.parent / "secret").write_bytes(bytes(32)),
    "with a secret that others can read": lambda path: (path.parent / "secret").chmod(0o644),
    "with half a secret": lambda path: cut(path.parent / "secret"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_what_was_written_is_compiled_anew_with_one_warning(folder, another_process, damage):
    Build(SOURCE.format(42)).load()
    (path,) = code(folder)
    DAMAGES[damage](path)
    another_process()
    with pytest.warns(CacheWarning, match="deleted, and is compiled anew") as told:
        again = Build(SOURCE.format(42))
    assert len(told) == 1
    assert str(path) in str(told[0].message)
    assert not again.cached
    assert again.load().answer() == 42
    another_process()
    assert Build(SOURCE.format(42)).load().answer() == 42


def test_what_has_been_loaded_is_not_touched_by_what_becomes_of_the_file(folder, another_process):
    """A library that is cut while it is in use would end the process."""
    Build(SOURCE.format(43)).load()
    another_process()
    library = Build(SOURCE.format(43)).load()
    cut(code(folder)[0])
    assert library.answer() == 43


def test_sound_files_that_the_system_cannot_load_are_compiled_anew(folder, another_process):
    made = Build(SOURCE.format(44))
    made.load()
    store.Store(folder).write(made.key, b"for another machine")
    another_process()
    with pytest.warns(CacheWarning, match="cannot be loaded"):
        assert Build(SOURCE.format(44)).load().answer() == 44


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722, 0o1777])
def test_a_folder_that_others_can_write_to_is_not_used_and_one_warning_says_so(folder, another_process, mode):
    Build(SOURCE.format(45)).load()
    another_process()
    folder.chmod(mode)
    with pytest.warns(CacheWarning, match="others can write to it") as told:
        first, second = (Build(SOURCE.format(i)) for i in (45, 46))
    assert len(told) == 1
    assert not first.cached
    assert first.load().answer() == 45
    assert second.load().answer() == 46
    assert len(code(folder)) == 1
    assert store.distrust(first._store.folder) is None


def test_a_folder_that_is_a_link_is_not_used(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.warns(CacheWarning, match="symbolic link"):
        assert Build(SOURCE.format(47)).load().answer() == 47
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_folder_of_another_user_is_not_used(folder, monkeypatch):
    Build(SOURCE.format(48)).load()
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    assert store.distrust(folder) == "it belongs to another user"
    with pytest.raises(ValueError, match="not a file of this user's"):
        store._read(code(folder)[0])


def test_a_folder_that_cannot_be_made_is_replaced(folder, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    for path in (file / "below", file):
        monkeypatch.setenv("PYRO_NFLOWS_CACHE", str(path))
        assert store.store().folder.is_dir()


def test_a_folder_that_cannot_be_written_is_replaced(folder, monkeypatch):
    compiler()  # is found while files can still be run
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert Build(SOURCE.format(49)).load().answer() == 49
    assert code(folder) == []


def test_without_a_home_there_is_a_folder_too(folder, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PYRO_NFLOWS_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert store.store().folder.is_dir()


# ---- killed, side by side, and full -------------------------------------------------------------------------------


def test_ten_processes_may_compile_the_same(folder):
    script = ALONE + f"print(Build({SOURCE.format(50)!r}).load().answer())"
    command = [sys.executable, "-W", "error", "-c", script]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(10)]
    assert [process.communicate(timeout=100) for process in started] == [("50\n", "")] * 10
    assert len(code(folder)) == 1
    assert leftovers(folder) == []


def test_a_process_killed_at_any_moment_leaves_nothing_wrong(folder):
    """Sixteen kills; the next process finds right code or none, and says nothing."""
    endless = f"i = 0\nwhile True:\n    assert Build({SOURCE!r}.format(100 + i % 3)).load()\n    i += 1\n"
    endless += "    import pyro_nflows.engine.native.build as b\n    b._LOADED.clear()\n"
    for i in range(16):
        process = subprocess.Popen([sys.executable, "-c", ALONE + endless], stderr=subprocess.PIPE)
        time.sleep(0.1 + 0.02 * i)
        process.kill()
        assert process.communicate()[1] == b""
        for path in code(folder)[i % 2 :]:
            path.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(3):
            assert Build(SOURCE.format(100 + i)).load().answer() == 100 + i


def test_folders_of_compilations_that_were_killed_are_removed(folder):
    Build(SOURCE.format(51)).load()
    gone = subprocess.Popen(["true"])
    gone.wait()
    hours = {f"build_{gone.pid}_old": 2, f"build_{gone.pid}_new": 0, f"build_{os.getpid()}_x": 2, "build_1_days": 48}
    for name, age in hours.items():
        (folder / name).mkdir()
        (folder / name / "program.c").write_text("")
        os.utime(folder / name, (0, time.time() - 3600 * age - 60))
    Build(SOURCE.format(52)).load()
    assert leftovers(folder) == sorted([f"build_{gone.pid}_new", f"build_{os.getpid()}_x"])


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_when_code_is_kept_costs_nothing_but_the_next_compilation(folder, monkeypatch):
    monkeypatch.setattr(store.Store, "_put", full)
    assert Build(SOURCE.format(53)).load().answer() == 53
    assert code(folder) == []
    assert leftovers(folder) == []


def test_a_disk_that_is_full_when_compiling_begins_says_so(folder, monkeypatch):
    for where in (store.Store, "workspace"), (Path, "write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(*where, full)
            with pytest.raises(CompilerError, match="No space left on device"):
                Build(SOURCE.format(54))
    assert not folder.exists() or leftovers(folder) == []


def test_a_disk_that_is_full_when_code_is_loaded_says_so_and_keeps_the_file(folder, another_process, monkeypatch):
    Build(SOURCE.format(55)).load()
    another_process()
    found = Build(SOURCE.format(55))
    for where in (store.Store, "workspace"), (Path, "write_bytes"):
        with monkeypatch.context() as patch:
            patch.setattr(*where, full)
            with pytest.raises(CompilerError, match="No space left on device"):
                found.load()
    assert found.load().answer() == 55


OPERATIONS = [
    *((os, name) for name in ("open", "replace", "link", "fsync", "fstat", "stat", "utime", "access")),
    *((Path, name) for name in ("mkdir", "write_text", "write_bytes", "read_bytes", "read_text", "unlink", "lstat")),
    (store.tempfile, "mkdtemp"),
    (build.subprocess, "Popen"),
    (build.ctypes, "CDLL"),
]


def failing_at(number, patch):
    """All operations on files work but that one; the counter says how many there were."""
    counter = [0]

    def failing(operation):
        def call(*args, **kwargs):
            counter[0] += 1
            if counter[0] == number:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return operation(*args, **kwargs)

        return call

    for where, name in OPERATIONS:
        patch.setattr(where, name, failing(getattr(where, name)))
    return counter


def answer_or_reason():
    """What compiled code gives, or why there is none."""
    try:
        return Build(SOURCE.format(62)).load().answer()
    except (CompilerError, OSError) as error:
        return str(error)


@pytest.mark.filterwarnings("ignore::pyro_nflows.engine.CacheWarning")
def test_whichever_operation_on_a_file_fails_code_is_right_or_an_error_says_so(
    folder, another_process, monkeypatch, tmp_path, compiler_is
):
    """Compiling, finding and loading, with a fault at each step in turn; afterwards all is in order."""
    command = [build.compiler(), "-shared", "-fPIC", "-x", "c", "-", "-o", str(tmp_path / "made.so")]
    subprocess.run(command, input=b"int answer(void) { return 62; }", check=True)
    compiler_is(f"cp {tmp_path}/made.so program.so")
    number, reasons, counter = 0, [], [1]
    while counter[0] >= number:
        number += 1
        monkeypatch.setenv("PYRO_NFLOWS_CACHE", str(tmp_path / str(number)))
        with monkeypatch.context() as patch:
            counter = failing_at(number, patch)
            for _ in range(2):
                store._temporary.cache_clear()
                build.compiler.cache_clear()
                reasons.append(answer_or_reason())
                another_process()
        build.compiler.cache_clear()
        assert answer_or_reason() == 62
        another_process()
    assert number > 40
    told = {reason for reason in reasons if reason != 62}
    assert told
    assert all("Input/output error" in reason or "no C compiler was found" in reason for reason in told)


def test_threads_may_compile_and_load_the_same(folder):
    with ThreadPoolExecutor(8) as pool:
        builds = list(pool.map(lambda _: Build(SOURCE.format(61)), range(8)))
        answers = list(pool.map(lambda made: made.load().answer(), [*builds, builds[0], builds[0]]))
    assert answers == [61] * 10
    assert leftovers(folder) == []


def test_on_a_small_disk_that_is_full_training_goes_on_traced(folder, compiling_pays):
    folder.mkdir(mode=0o700)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        with contextlib.suppress(OSError):
            (folder / "filler").write_bytes(bytes(100_000))
        (note,) = trained()
        assert "No space left" in note
    finally:
        subprocess.run(["umount", folder], check=True)


# ---- compilers that fail, hang or are interrupted ------------------------------------------------------------------


def log_joint(z):
    return -0.5 * (z - 1).square().sum(-1)


@pytest.fixture
def compiling_pays(monkeypatch):
    monkeypatch.setattr(backends, "compile_seconds", lambda tape: 0.0)


def trained(engine=None, num_steps=3000):
    """What a short round's history says; it must have trained."""
    trainer = Trainer(log_joint, engine=engine, progress_bar=False)
    layer = Chain(LocScale(2))
    trainer.run(layer, ELBO(), Gradient.PATH, Round(num_steps, 4, 3e-2), "")
    trainer.close()
    assert trainer.history.num_steps == num_steps
    assert torch.allclose(layer[0].loc, torch.ones(2), atol=0.05)
    return trainer.history.engine_notes


def test_a_compiler_that_fails_says_why_and_leaves_nothing(folder):
    with pytest.raises(CompilerError, match="error"):
        Build("this is not C").load()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo warm; echo 'fatal error: cold' >&2; exit 1", "fatal error: cold"),
        ("exit 3", "failed with status 3"),
        ("kill -9 $$", "stopped by signal 9"),
        ("echo 'ld: No space left on device' >&2; exit 1", "No space left on device"),
        ("exit 0", "cannot be loaded"),
        ("echo nonsense > program.so", "cannot be loaded"),
        ("i=0; while [ $i -lt 9000 ]; do echo 'error: one of many, many lines' >&2; i=$((i+1)); done; exit 1", "many"),
    ],
)
def test_whatever_a_compiler_does_its_reason_is_told(folder, compiler_is, script, message):
    compiler_is(script)
    made = Build(SOURCE.format(56))
    with pytest.raises(CompilerError, match=message):
        made.load()
    assert made.is_ready
    with pytest.raises(CompilerError, match=message):
        made.load()
    assert list(folder.iterdir()) == []


def test_a_compiler_that_hangs_is_stopped_with_its_children(folder, compiler_is, monkeypatch):
    monkeypatch.setenv("PYRO_NFLOWS_COMPILE_SECONDS", "0.5")
    compiler_is("sleep 98765 & sleep 98765")
    began = time.monotonic()
    made = Build(SOURCE.format(57))
    assert time.monotonic() - began < 0.4
    assert not made.is_ready
    with pytest.raises(CompilerError, match=r"took longer than 0\.5 s .PYRO_NFLOWS_COMPILE_SECONDS"):
        made.load()
    assert time.monotonic() - began < 5
    assert soon(lambda: num_processes("sleep 98765") == 0)
    assert list(folder.iterdir()) == []


def test_a_fit_does_not_wait_for_a_compiler_that_hangs(folder, compiler_is, compiling_pays, monkeypatch):
    compiler_is("sleep 87654")
    began = time.monotonic()
    assert trained() == []  # it was still hoping
    assert time.monotonic() - began < 60
    assert num_processes("sleep 87654") <= 2  # the code that all programs share, and what may soon be done
    stop_all()
    assert soon(lambda: num_processes("sleep 87654") == 0)
    monkeypatch.setenv("PYRO_NFLOWS_COMPILE_SECONDS", "0.05")
    (note,) = trained()
    assert note.startswith("compiled: the compiler took longer than 0.05 s")


def test_a_fit_that_asks_for_compiled_code_waits_no_longer_than_the_limit(folder, compiler_is, monkeypatch):
    monkeypatch.setenv("PYRO_NFLOWS_COMPILE_SECONDS", "0.3")
    compiler_is("sleep 76543")
    with pytest.warns(EngineWarning, match="took longer than"):
        (note,) = trained(Engine.COMPILED)
    assert "took longer than" in note
    assert soon(lambda: num_processes("sleep 76543") == 0)


def test_an_interrupt_while_waiting_for_the_compiler_ends_the_round_and_the_compiler(folder, compiler_is):
    compiler_is("sleep 65432")
    trainer = Trainer(log_joint, engine=Engine.COMPILED, progress_bar=False)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        began = time.monotonic()
        trainer.run(Chain(LocScale(2)), ELBO(), Gradient.PATH, Round(10, 4, 1e-2), "")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 10
    assert trainer.history.interrupted
    stop_all()
    assert soon(lambda: num_processes("sleep 65432") == 0)


def test_a_build_can_be_given_up(folder):
    made = Build(SOURCE.format(7))
    made.cancel()
    assert list(folder.iterdir()) == []
    with pytest.raises(CompilerError, match="given up"):
        made.load()


def test_a_compiler_that_was_left_ends_by_itself_and_its_code_is_kept(folder, another_process):
    Build(SOURCE.format(9)).leave()
    assert soon(lambda: code(folder))
    another_process()
    assert Build(SOURCE.format(9)).cached
    assert build._LEFT == {}
    assert soon(lambda: leftovers(folder) == [])


def test_the_next_one_goes_on_with_a_compiler_that_was_left(folder, compiler_is):
    real = build.compiler()
    compiler_is(f"sleep 0.5\necho once >> {folder.parent}/calls\nexec {real} $*")
    Build(SOURCE.format(10)).leave()
    second = Build(SOURCE.format(10))
    assert not second.cached
    assert build._LEFT == {}
    assert second.load().answer() == 10
    assert (folder.parent / "calls").read_text() == "once\n"
    assert leftovers(folder) == []


def test_a_compiler_that_was_left_and_hangs_is_stopped(folder, compiler_is, monkeypatch):
    compiler_is("sleep 54321")
    monkeypatch.setattr(build, "SECONDS_LEFT", 0.3)
    made = Build(SOURCE.format(11))
    made.leave()
    assert soon(lambda: num_processes("sleep 54321") == 0)
    assert soon(lambda: build._LEFT == {})
    assert soon(lambda: list(folder.iterdir()) == [])


def test_few_and_short_compilations_are_left_to_themselves(folder, compiler_is):
    compiler_is("sleep 43210")
    long = Build(SOURCE.format(1) + "/*" + "x" * build.SHORT + "*/")
    several = [Build(SOURCE.format(n)) for n in range(build.MOST_LEFT + 1)]
    for each in (long, *several):
        each.leave()
    assert soon(lambda: num_processes("sleep 43210") == build.MOST_LEFT)
    stop_all()
    assert soon(lambda: num_processes("sleep 43210") == 0)


def test_code_that_all_programs_share_is_tried_again_after_a_failure(folder, compiler_is, monkeypatch):
    compiler_is("exit 1")
    with pytest.raises(CompilerError):
        build.linear_library("d").load()
    monkeypatch.delenv("CC")
    build.compiler.cache_clear()
    assert build.linear_library("d").load().dproduct


def test_without_a_compiler_there_is_an_error(monkeypatch, folder):
    monkeypatch.setattr(build, "compiler", lambda: None)
    with pytest.raises(CompilerError, match="no C compiler was found"):
        Build(SOURCE.format(1))


def test_a_compiler_may_be_named_with_arguments(folder, monkeypatch):
    monkeypatch.setenv("CC", f"{build.compiler()} -DANSWER=58")
    build.compiler.cache_clear()
    try:
        assert Build(SOURCE.format("ANSWER")).load().answer() == 58
    finally:
        build.compiler.cache_clear()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_leaves_its_parents_compiler_alone(folder):
    script = f"""
    import os
    made = Build({SOURCE.format(59)!r})
    child = os.fork()
    answer = made.load().answer()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        print(answer)
    """
    command = [sys.executable, "-W", "error", "-c", ALONE + textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("59\n", "")
    assert leftovers(folder) == []


# ---- what is listed ------------------------------------------------------------------------------------------------


def test_what_is_kept_is_listed_and_cleared(folder, capsys):
    cache.main([])
    assert "nothing is kept" in capsys.readouterr().out
    for i in (60, 61):
        Build(SOURCE.format(i)).load()
    cut(code(folder)[0])
    cache.main([])
    shown = capsys.readouterr().out
    assert shown.count("WRONG") == 1
    assert shown.count("right") == 1
    assert f"{folder}: 2 of at most 300 files" in shown
    cache.main(["--clear"])
    assert "2 files deleted" in capsys.readouterr().out
    assert list(folder.iterdir()) == []
    folder.chmod(0o777)
    cache.main([])
    assert "others can write to it" in capsys.readouterr().out


def test_the_command_runs_by_its_name(folder):
    command = [sys.executable, "-W", "error", "-m", "pyro_nflows.engine.cache"]
    root = Path(build.__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=root)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing is kept" in done.stdout
