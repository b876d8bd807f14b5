"""The house: modules import only downward, files stay readable, and importing the package changes nothing."""

import ast
import graphlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import pyro_nflows

PACKAGE = "pyro_nflows"
ROOT = Path(pyro_nflows.__file__).parent
MAX_LINES = 320

#: A module, or a folder for all of its modules, to its floor.
FLOORS = {
    "numerics": 0,
    "exclusive": 0,
    "hamiltonian": 0,
    "context": 0,
    "calls": 0,
    "contraction": 0,
    "dynamics": 0,
    "nets": 0,
    "masked": 0,
    "rotation": 0,
    "tiling": 0,
    "transformers": 0,
    "index_law": 0,
    "steps": 0,
    "tails": 0,
    "layer": 1,
    "layers": 2,
    "recipes": 3,
    "distribution": 3,
    "bridge": 3,
    "testing": 3,
    "supports": 2,
    "initialization": 3,
    "guides": 4,
    "handlers": 4,
    "transformable": 3,
    "log_joint": 4,
    "weights": 4,
    "gradients": 5,
    "objectives": 6,
    "estimators": 5,
    "bounds": 5,
    "diagnostics": 5,
    "invertibility": 5,
    "ranks": 5,
    "calibration": 5,
    "simulation": 5,
    "predictive": 5,
    "arviz": 5,
    "constants": 4,
    "plots": 5,
    "rank_plots": 5,
    "verdict": 5,
    "start": 5,
    "arguments": 6,
    "mark": 6,
    "blame": 5,
    "table": 5,
    "engine": 5,
    "elsewhere": 6,
    "clusters": 5,
    "tempering": 6,
    "modes": 6,
    "search": 8,
    "refine": 6,
    "files": 0,
    "signals": 0,
    "result": 6,
    "checkpoint": 9,
    "portable": 5,
    "resume": 9,
    "running": 9,
    "drive": 6,
    "fit": 7,
    "replications": 9,
    "sbc": 9,
    "vi": 10,
    "": 11,
}
#: Within these folders no file imports another; the folder's own ``__init__`` may.
SIBLINGS_APART = {"layers"}


def module_name(path: Path) -> str:
    """``"layers.planar"`` for a file; ``""`` for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(name: str) -> set[str]:
    """The modules of the package that a module imports, wherever in the file."""
    path, found = MODULES[name], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = [PACKAGE, *path.relative_to(ROOT).parts[:-1]]
            start = here[: len(here) + 1 - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            full = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in full:
            if target.split(".")[0] == PACKAGE:
                inner = target[len(PACKAGE) + 1 :]
                found.add(inner if inner in MODULES else inner.rpartition(".")[0])
    return found


def floor(name: str) -> int:
    return FLOORS[name.split(".")[0]]


def test_every_module_has_a_floor():
    assert {name.split(".")[0] for name in MODULES} == set(FLOORS)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_downward(name):
    assert [other for other in imports(name) if floor(other) > floor(name)] == []


@pytest.mark.parametrize("name", [name for name in MODULES if "." in name])
def test_siblings_do_not_import_each_other(name):
    folder = name.split(".")[0]
    if folder in SIBLINGS_APART:
        assert [other for other in imports(name) if other.split(".")[0] == folder] == []


def test_no_module_imports_itself_in_a_circle():
    graph = {name: imports(name) for name in MODULES}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_a_file_is_short_enough_to_read(name):
    num_lines = MODULES[name].read_text().count("\n")
    assert num_lines <= MAX_LINES


def test_importing_changes_nothing():
    script = """
        import random, sys, warnings
        import numpy, pyro, torch
        import sympy  # which torch imports at times, and which sets a filter for warnings of its own
        from pyro import poutine

        def state():
            return {
                "dtype": torch.get_default_dtype(),
                "device": torch.get_default_device(),
                "threads": torch.get_num_threads(),
                "grad": torch.is_grad_enabled(),
                "torch validation": torch.distributions.Distribution._validate_args,
                "pyro validation": pyro.settings.get(),
                "param store": dict(pyro.get_param_store().items()),
                "handlers": list(poutine.runtime._PYRO_STACK),
                "warnings": list(warnings.filters),
                "showwarning": warnings.showwarning,
                "torch rng": torch.get_rng_state().tolist(),
                "numpy rng": str(numpy.random.get_state()),
                "python rng": random.getstate(),
                "numpy errors": numpy.geterr(),
                "hooks": (sys.excepthook, sys.displayhook),
            }

        before = state()
        import pyro_nflows
        after = state()
        changed = [key for key in before if before[key] != after[key]]
        heavy = [name for name in ("arviz", "matplotlib", "zuko", "pandas", "xarray") if name in sys.modules]
        print(changed, heavy)
    """
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.stdout, result.stderr) == ("[] []\n", "")
