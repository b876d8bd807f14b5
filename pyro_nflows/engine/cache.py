"""What compiled code is kept on this machine: ``python -m pyro_nflows.engine.cache``; with ``--clear``, none is."""

import argparse
from collections.abc import Sequence

from .native.compilers import positive
from .native.store import MAX_FILES, MAX_MEGABYTES, Store, distrust, wanted


def main(arguments: Sequence[str] | None = None) -> None:
    """List the code that is kept, or delete it.

    :param arguments: of the command line.
    """
    parser = argparse.ArgumentParser("python -m pyro_nflows.engine.cache", description=__doc__)
    parser.add_argument("--clear", action="store_true", help="delete all of it")
    clear, folder = parser.parse_args(arguments).clear, wanted()
    try:
        reason = distrust(folder)
    except FileNotFoundError:
        print(f"{folder}: nothing is kept; the folder is not there")
        return
    if reason is not None:
        print(f"{folder}: not used, for {reason}")
        return
    print(_cleared(Store(folder)) if clear else _listed(Store(folder)))


def _cleared(store: Store) -> str:
    return f"{store.folder}: {store.clear()} files deleted"


def _listed(store: Store) -> str:
    entries = store.entries()
    rows = [f"{'name':45s} {'kB':>8s} {'last used':>10s}  digest"]
    rows += [f"{e.name:45s} {e.size / 1e3:8.0f} {_ago(e.age):>10s}  {_right(e.is_sound)}" for e in entries]
    total, bound = sum(e.size for e in entries) / 1e6, positive("PYRO_NFLOWS_CACHE_MB", MAX_MEGABYTES)
    rows.append(f"{store.folder}: {len(entries)} of at most {MAX_FILES} files, {total:.1f} of at most {bound:g} MB")
    return "\n".join(rows)


def _right(is_sound: bool) -> str:
    return "right" if is_sound else "WRONG: will be compiled anew"


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


if __name__ == "__main__":
    main()
