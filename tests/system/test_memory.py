"""How much memory is left, and what is said where there is not enough."""

import errno
import gc
import weakref
from pathlib import Path

import pytest
import torch

from pyro_nflows.system import memory
from pyro_nflows.system.memory import NOBODY_HAS, OutOfMemory, bytes_left, enough, is_out_of_memory

ABSURD = 10**15


def test_torch_and_python_out_of_memory_are_told_from_other_errors() -> None:
    """All are raised, so that this holds for the torch that there is."""
    asked = [
        lambda: torch.empty(ABSURD),
        lambda: torch.empty(2**61, 16),
        lambda: torch.empty(2**70),
        lambda: torch.nn.Linear(10**9, 10**9),
        lambda: [0] * 2**60,
    ]
    for ask in asked:
        with pytest.raises((MemoryError, RuntimeError, TypeError), match=r"memory|size|Linear|^$") as told:
            ask()
        assert is_out_of_memory(told.value), told.value
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    for error in (RuntimeError("singular"), ValueError("no memory of it"), OSError(errno.EIO, "disk"), KeyError("b")):
        assert not is_out_of_memory(error)


def test_what_cannot_fit_is_refused_before_anything_is_done() -> None:
    done = []
    text = r"^f: there is not enough memory for much: they take at least .* TB.*; less$"
    with pytest.raises(MemoryError, match=text), enough("f", "much", 2**60 + 1, "less"):
        done.append(1)
    assert not done
    with enough("f", "little", 8, "less"):
        done.append(1)
    assert done


def test_memory_that_gives_out_is_told_with_what_was_asked_for_at_once() -> None:
    text = "f: there is not enough memory for many draws: 8,000 TB were asked for at once; ask for fewer"
    with pytest.raises(OutOfMemory, match=f"^{text}$"), enough("f", "many draws", 0, "ask for fewer"):
        torch.empty(ABSURD, dtype=torch.float64)


def test_the_innermost_sentence_stays_and_other_errors_are_left_alone() -> None:
    outer, inner = enough("outer", "b", 0, "that"), enough("inner", "a", 0, "this")
    with pytest.raises(OutOfMemory, match=r"^inner: .*; this$"), outer, inner:
        raise MemoryError
    with pytest.raises(RuntimeError, match=r"^singular$"), enough("f", "a", 0, "this"):
        raise RuntimeError("singular")


def test_what_a_failed_attempt_held_is_let_go_while_its_error_is_shown() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    def attempt() -> None:
        held = torch.zeros(1000)
        kept.append(weakref.ref(held))
        raise MemoryError

    with pytest.raises(OutOfMemory) as told, enough("f", "a", 0, "this"):
        attempt()
    gc.collect()
    assert told.value.__cause__ is not None  # with the line where it was
    assert kept[0]() is None


@pytest.mark.parametrize(
    ("line", "folder", "names", "limit"),
    [
        ("4:memory:/job/one", "memory/job", memory._FIRST, "100"),
        ("0::/job/one", "job", memory._SECOND, "100"),
        ("0::/job/one", "job", memory._SECOND, "max"),
    ],
)
def test_a_containers_limit_counts(tmp_path: Path, line: str, folder: str, names: tuple[str, ...], limit: str) -> None:
    group, own = tmp_path / "cgroup" / folder, tmp_path / "own"
    group.mkdir(parents=True)
    own.write_text(f"3:cpuset:/\n{line}\n")
    (group / names[0]).write_text(limit)
    (group / names[1]).write_text("70")
    (group / "memory.stat").write_text(f"{names[2]} 5\n{names[3]} 7\n")
    left = memory._of_container(tmp_path / "cgroup", own)
    assert left == (NOBODY_HAS if limit == "max" else 100 - 70 + 5 + 7)
    assert memory._of_container(tmp_path / "none", tmp_path / "nothing") == NOBODY_HAS


def test_a_limit_of_the_address_space_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**30, 2**30))
    assert bytes_left() < 2**30
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert memory._of_process() == NOBODY_HAS
