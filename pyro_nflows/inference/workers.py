r"""Work for other processes, through whatever has the interface of ``concurrent.futures.Executor``.

Each piece of work is numbered, is a function of what it is given, and gives the same wherever it runs: so results do
not depend on how many workers there are, or on which of them did what.
"""

import contextlib
import itertools
import os
import pickle
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from typing import Any

from ..checks import first_line
from ..engine import Journal, Progress
from ..system.cores import on_one_core
from ..system.ranks import Ranks
from ..system.signals import uninterrupted
from .portable import UnpicklableError, pickled

#: What to do where there can be no worker, for the messages.
REMEDY = "ProcessPoolExecutor(mp_context=multiprocessing.get_context('spawn'))"


#: Pieces for each rank before it is asked for what has come of them.
AT_A_TIME = 4


class WorkerError(RuntimeError):
    """A worker failed, or is gone; the message says at what."""


def check_executor(who: str, executor: Any) -> None:
    """Refuse what cannot do work in other processes.

    :raises TypeError: if it is no executor, or one of threads.
    """
    if executor is None:
        return
    if isinstance(executor, ThreadPoolExecutor):
        raise TypeError(
            f"{who}: executor is a ThreadPoolExecutor, but Pyro has one stack of handlers for all threads of a "
            f"process, so its fits could not go side by side; give it processes, {REMEDY}"
        )
    if not isinstance(executor, Executor) and not callable(getattr(executor, "submit", None)):
        raise TypeError(
            f"{who}: executor must be a concurrent.futures.Executor, such as {REMEDY}, got {type(executor).__name__}"
        )


def spread(
    who: str,
    what: str,
    executor: Executor | Ranks,
    task: Callable[..., Any],
    given: Iterable[tuple[int, Sequence[Any]]],
) -> Iterator[tuple[int, Any]]:
    """Numbered pieces of work by an executor: each number with its result, as it is done.

    When the iterator is left, what has not begun is given up. Where a piece fails, those that are done come first.

    :param who: asks, for the messages.
    :param what: a piece is called.
    :param executor: does them; or the processes of ``torch.distributed``.
    :param task: a function of a module, so that other processes can find it.
    :param given: numbers, and the function's arguments.
    :raises WorkerError: if a worker dies, or the function fails there.

    Example::

        >>> import math
        >>> class Here(Executor):
        ...     def submit(self, task, *args):
        ...         done = Future()
        ...         done.set_result(task(*args))
        ...         return done
        ...
        >>> sorted(spread("demo", "root", Here(), math.sqrt, [(0, (4.0,)), (1, (9.0,))]))
        [(0, 2.0), (1, 3.0)]
    """
    if isinstance(executor, Ranks):
        yield from _by_ranks(who, what, executor, task, given)
        return
    futures = dict[Future[Any], int]()
    with tempfile.TemporaryDirectory(prefix="pyro_nflows-", ignore_cleanup_errors=True) as folder:
        try:
            try:
                for number, args in given:
                    futures[executor.submit(noted, folder, number, sent(who, (task, args)))] = number
            except RuntimeError as error:  # of which BrokenExecutor is one
                if futures and isinstance(error, BrokenExecutor):
                    raise _gone(who, what, folder, executor) from error
                raise WorkerError(f"{who}: the executor takes no work ({first_line(error)}); make a new one") from error
            left = dict(futures)
            for future in as_completed(futures):
                if future.exception() is not None:
                    yield from ((left[each], pickle.loads(each.result())) for each in list(left) if _is_fine(each))
                    raise _failed(future, who, what, left[future], folder, executor) from future.exception()
                yield left.pop(future), pickle.loads(future.result())
        finally:
            for future in futures:
                future.cancel()


def _by_ranks(
    who: str, what: str, ranks: Ranks, task: Callable[..., Any], given: Iterable[tuple[int, Sequence[Any]]]
) -> Iterator[tuple[int, Any]]:
    """The same by the processes of ``torch.distributed``, some pieces each at a time."""
    left = list(given)
    each = 1 if len(left) < AT_A_TIME * ranks.size else AT_A_TIME
    while left:
        now, left = left[: each * ranks.size], left[each * ranks.size :]
        shares = [now[rank :: ranks.size] for rank in range(ranks.size)]
        with uninterrupted():
            ranks.tell("work", sent(who, (task, shares)))
        mine = done(task, shares[0])
        with uninterrupted():
            found = ranks.gather(mine)
        for number, result, error in itertools.chain(*found):
            if error:
                raise WorkerError(f"{who}: {what} {number} failed on its rank ({error})")
            yield number, result


def done(task: Callable[..., Any], given: Sequence[tuple[int, Sequence[Any]]]) -> list[tuple[int, Any, str]]:
    """Each piece of work with its number, its result and why it failed, if it did; None after an interrupt."""
    found, interrupted = list[tuple[int, Any, str]](), False
    for number, args in given:
        try:
            found.append((number, None if interrupted else task(*args), ""))
        except KeyboardInterrupt:
            interrupted = True
            found.append((number, None, ""))
        except Exception as error:
            found.append((number, None, f"{type(error).__name__}: {first_line(error)}"))
    return found


def _is_fine(future: "Future[Any]") -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _failed(future: "Future[Any]", who: str, what: str, number: int, folder: str, executor: Executor) -> WorkerError:
    error = future.exception()
    if isinstance(error, BrokenExecutor) or error is None:
        return _gone(who, what, folder, executor)
    return WorkerError(f"{who}: {what} {number} failed in its worker ({type(error).__name__}: {first_line(error)})")


def _gone(who: str, what: str, folder: str, executor: Executor) -> WorkerError:
    """What to say where a process of a pool has ended: what it was doing is noted in the folder."""
    begun = sorted((int(entry.name), int(_read(entry.path))) for entry in os.scandir(folder))
    killed = _ended_by_themselves(executor)
    numbers = [number for number, process in begun if process in killed] or [number for number, _ in begun]
    if not numbers:
        return WorkerError(
            f"{who}: the workers ended before they began. A script that starts processes needs "
            "if __name__ == '__main__': around all that is to be done once; and the modules it imports must be there "
            "for the workers, too"
        )
    which = " or ".join([", ".join(map(str, numbers[:-1])), str(numbers[-1])]) if numbers[1:] else str(numbers[0])
    return WorkerError(
        f"{who}: a worker died during {what} {which}, perhaps killed for want of memory. Fewer workers take less of "
        "it; without executor=, all is done in this process, where a crash shows its cause"
    )


def _ended_by_themselves(executor: Executor) -> set[int]:
    """Processes of a broken pool that nobody asked to end, as far as that is known; the pool has ended the others."""
    if not isinstance(executor, ProcessPoolExecutor):
        return set()
    processes = dict(getattr(executor, "_processes", None) or {})
    for process in processes.values():
        with contextlib.suppress(Exception):
            process.join(1.0)
    return {pid for pid, process in processes.items() if process.exitcode not in (None, 0, -signal.SIGTERM)}


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def sent(who: str, thing: Any) -> bytes:
    """A pickle, of tensors too, which executors would otherwise send as shared memory.

    :raises TypeError: if there can be none.
    """
    try:
        return pickled(thing)
    except UnpicklableError as error:
        raise TypeError(f"{who}: what is to be done cannot be sent to another process ({error})") from error


def not_found(reason: str) -> TypeError:
    """What to say where a worker has no model.

    :param reason: why not.
    """
    return TypeError(
        f"the guide {reason}. Define the model at the top level of a module, so that a worker can import it; or import "
        "cloudpickle, which sends other functions too, here and there"
    )


def noted(folder: str, number: int, given: bytes) -> bytes:
    """A piece of work, in a worker: on one thread of one processor, and noted while it lasts.

    An interrupt ends it with None; the worker stays for others.

    :param folder: where that is noted, if it is there: a worker may be on another machine.
    :param number: of the piece.
    :param given: a function and its arguments.
    """
    path = os.path.join(folder, str(number))
    with contextlib.suppress(OSError), open(path, "w") as file:
        file.write(str(os.getpid()))
    try:
        with on_one_core():
            task, args = pickle.loads(given)
            return sent("a worker", task(*args))
    except KeyboardInterrupt:
        return pickle.dumps(None)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def fit_starts(
    workers: Any,
    work: Callable[..., Any],
    given: Sequence[tuple[Any, ...]],
    journal: Journal,
    progress: Progress,
    follows: str = "",
) -> tuple[dict[int, Any], bool]:
    """What the fit from each start gives, by its place, and whether all were interrupted.

    A run that is resumed has those that were complete.

    :param workers: see :func:`spread`, as for ``work``.
    :param given: arguments of the work, of each start.
    :param journal: has what was given, in the order of the starts.
    :param progress: shows how many are done.
    :param follows: what comes after these.
    :raises WorkerError: if a worker dies or fails; it says at which start.
    """
    num, found, coming = len(given), list[Any](), dict[int, Any]()
    while len(found) < num and (recalled := journal.recall(_start(len(found)))) is not None:
        found.append(recalled)
    try:
        with progress.phase(f"{num} starts", num, follows, unit="fit"):
            progress.advance(len(found))
            numbered = [(i + 1, given[i]) for i in range(len(found), num)]
            for number, result in spread("VI.run", "start", workers, work, numbered):
                if result is None:
                    raise KeyboardInterrupt
                coming[number - 1] = result
                progress.advance(1)
                while len(found) in coming:  # the journal has them in order
                    journal.recall(_start(len(found)))
                    journal.record(_start(len(found)), coming[len(found)])
                    found.append(coming.pop(len(found)))
    except KeyboardInterrupt:
        return dict(enumerate(found)) | coming, True
    return dict(enumerate(found)) | coming, False


def _start(index: int) -> str:
    return f"start {index + 1}, in another process"


def refuse_parameters(leaves: Sequence[Any]) -> None:
    """Whether a model has parameters of its own, which starts in other processes could not share.

    :raises ValueError: if it has.
    """
    if leaves:
        raise ValueError(
            "VI.run: the model has parameters of its own (pyro.param), which all starts train, so they cannot be in "
            "processes of their own; leave out executor="
        )
