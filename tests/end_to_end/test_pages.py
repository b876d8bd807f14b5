"""What the documentation's pages show: nothing is used that nobody has, all runs, and what it reaches is right."""

import builtins
import os
import shlex
import socket
import subprocess
import symtable
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

from pyro_nflows import SBC, VI
from tests.pages import PAGES, Names, parts, script, start_of
from tests.run_readme import README


def names_of(source: str) -> tuple[set[str], set[str]]:
    """Those that an example reads of its page, in functions too, and those that it gives it."""
    top = symtable.symtable(source, "example", "exec")
    used, given, tables = set[str](), set[str](), [top]
    while tables:
        table = tables.pop()
        tables.extend(table.get_children())
        for symbol in table.get_symbols():
            if table is top and (symbol.is_assigned() or symbol.is_imported()):
                given.add(symbol.get_name())
            elif symbol.is_referenced() and (symbol.is_global() or table is top):
                used.add(symbol.get_name())
    return used - given, given


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_used_that_nobody_has(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whether the examples run whole takes minutes to see; most of what breaks them shows here."""
    for kind in (VI, SBC):
        monkeypatch.setattr(kind, "run", lambda self, *args, **kwargs: self)
    monkeypatch.chdir(tmp_path)
    known = {*dir(builtins), *start_of(page)}
    for source, told in parts(page):
        for example in told:
            known |= set(example.given())
        used, given = names_of(source)
        assert used <= known
        known |= given


def run_script(page: str, source: str) -> None:
    """By the page's own command, on a free port."""
    name, command = script(page, source) or ("", "")
    Path(name).write_text(source, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    paths = [str(README.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PET_MASTER_PORT": port, "PYTHONPATH": os.pathsep.join(paths)}
    launcher, *words = shlex.split(command)
    assert launcher == "torchrun"
    whole = [sys.executable, "-m", "torch.distributed.run", *words]
    done = subprocess.run(whole, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Trust these draws") == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore:At pyro.sample")
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_runs(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(mpl.rcParams, "figure.max_open_warning", 0)
    monkeypatch.chdir(tmp_path)
    names: Names = start_of(page)
    try:
        for source, told in parts(page):
            for example in told:
                names |= example.given()
            if script(page, source):
                run_script(page, source)
            else:
                exec(compile(source, f"docs/{page}.md", "exec"), names)
            for example in told:
                example.reached(names)
    finally:
        torch.set_default_dtype(torch.float64)
