"""Modules import only downward, files stay readable, and importing the package changes nothing."""

import ast
import functools
import graphlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pyro_nflows

PACKAGE = "pyro_nflows"
ROOT = Path(pyro_nflows.__file__).parent
MAX_LINES = 320
MAX_FUNCTION_LINES = 60

#: The package's parts, from what a user calls down to what knows nothing of the rest. Imports go down this list only.
ORDER = [
    "",
    "inference",
    "modes",
    "plots",
    "engine",
    "diagnostics",
    "guides",
    "objectives",
    "testing",
    "flows",
    "layers",
    "nets",
    "arviz",
    "transformers",
    "model",
    "numerics",
    "triangles",
    "checks",
    "system",
]
MAX_ENTRIES = 20
#: Within these folders no file imports another; the folder's own ``__init__`` may.
SIBLINGS_APART = {"layers"}
#: The contract that the layers have in common.
SHARED = {"layers.base", "layers.shapes"}


def module_name(path: Path) -> str:
    """``"layers.planar"`` for a file; ``""`` for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


@functools.cache
def nodes(name: str) -> list[ast.AST]:
    """All of a module's syntax. Tests go through all modules: one each would take longer to begin than to run."""
    return list(ast.walk(ast.parse(MODULES[name].read_text())))


@functools.cache
def imports(name: str) -> set[str]:
    """The modules of the package that a module imports, wherever in the file."""
    path, found = MODULES[name], set()
    for node in nodes(name):
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


def part(name: str) -> str:
    return name.split(".")[0]


def test_the_package_has_the_parts_that_it_should():
    assert {part(name) for name in MODULES} == set(ORDER)
    entries = [path for path in ROOT.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MAX_ENTRIES


def test_the_documentation_lists_the_same_parts_in_the_same_order():
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", (ROOT.parent / "docs/architecture.md").read_text(), re.MULTILINE)
    assert ["", *rows] == ORDER


def test_every_part_has_tests_and_every_folder_of_tests_a_part():
    """What is asked of the package as a whole, and of the benchmarks, has folders of its own."""
    tests = Path(__file__).parent
    folders = {path.parent.relative_to(tests).parts for path in tests.rglob("test_*.py")} - {()}
    packages = {tuple(name.split(".")) for name, path in MODULES.items() if name and path.stem == "__init__"}
    assert folders - {("end_to_end",), ("benchmarks",)} <= packages
    assert {folder[0] for folder in packages} <= {folder[0] for folder in folders}


def test_modules_import_only_downward():
    place = {name: ORDER.index(part(name)) for name in MODULES}
    assert [(name, other) for name in MODULES for other in imports(name) if place[other] < place[name]] == []


def test_siblings_do_not_import_each_other():
    apart = [name for name in MODULES if "." in name and part(name) in SIBLINGS_APART and name not in SHARED]
    assert [(a, b) for a in apart for b in imports(a) if part(b) == part(a) and b not in SHARED] == []


def test_no_module_imports_itself_in_a_circle():
    graph = {name: imports(name) for name in MODULES}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(MODULES)


def test_files_are_short_enough_to_read():
    num_lines = {name: path.read_text().count("\n") for name, path in MODULES.items()}
    assert {name: num for name, num in num_lines.items() if num > MAX_LINES} == {}


def test_functions_are_short_enough_to_read():
    functions = [(name, node) for name in MODULES for node in nodes(name) if isinstance(node, ast.FunctionDef)]
    sizes = {(name, f.name): f.end_lineno - f.lineno - docstring_lines(f) for name, f in functions}
    assert {where: size for where, size in sizes.items() if size >= MAX_FUNCTION_LINES} == {}


def docstring_lines(function: ast.FunctionDef) -> int:
    return (ast.get_docstring(function, clean=False) or "").count("\n") + 1


def test_no_part_imports_the_private_names_of_another():
    found = [
        (name, alias.name)
        for name in MODULES
        for node in nodes(name)
        if isinstance(node, ast.ImportFrom) and (node.level > 1 or (node.module or "").startswith(PACKAGE))
        for alias in node.names
        if alias.name.startswith("_") and alias.name != "__version__"
    ]
    assert found == []


#: Private attributes that are not this package's. Of a named tuple:
FOREIGN = {"_replace", "_fields"}
#: Of torch; ``docs/torch_internals.md`` says what each is for.
FOREIGN |= {"_C", "_functorch", "_get_tracing_state", "_validate_args", "_buffers", "_modules", "_version", "_cdata"}
FOREIGN |= {"_parameters", "_get_backend", "_timeout", "_get_current_function_mode", "_current_level"}
FOREIGN |= {"_schema", "_overloadname", "_unsafe_view", "_reshape_alias", "_local_scalar_dense"}
#: Of Pyro, which has no other way to masks, to the store's raw values, to its handlers and to its stable densities.
FOREIGN |= {"_mask", "_params", "_PYRO_STACK", "_pyro_dims", "_unsafe_standard_stable", "_unsafe_shift"}
FOREIGN |= {"_unsafe_alpha_stable_log_prob_at_zero", "_unsafe_stable_log_prob"}


@functools.cache
def private_attributes(name: str) -> tuple[set[str], set[str]]:
    """The private names that a module gives its objects, and those that it reads from others than ``self``."""
    own, read = set(), set()
    for node in nodes(name):
        if isinstance(node, ast.FunctionDef):
            own.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            own.add(node.target.id)
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            base = ast.unparse(node.value)
            (own if base in ("self", "cls", "super()") else read).add(node.attr)
    return own, read


def test_no_module_reads_the_private_attributes_of_another_ones_objects():
    found = {}
    for name in MODULES:
        own, read = private_attributes(name)
        near = [other for other in imports(name) if part(other) == part(name)]
        inherited = {attribute for other in near for attribute in private_attributes(other)[0]}
        found[name] = read - own - inherited - FOREIGN
    assert {name: names for name, names in found.items() if names} == {}


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


def test_the_documentation_lists_every_private_part_of_torch():
    page = (ROOT.parent / "docs/torch_internals.md").read_text()
    used = set()
    for path in MODULES.values():
        used |= set(re.findall(r"torch(?:\.[a-zA-Z]\w*)*\._[a-zA-Z]\w*(?:\._?[a-zA-Z]\w*)?", path.read_text()))
    used = {
        name.split("._C._")[0] + "._C._" + name.split("._C._")[1].split(".")[0] if "._C._" in name else name
        for name in used
    }
    assert {name for name in used if name not in page} == set()
