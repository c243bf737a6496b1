"""The shape of the package: imports go one way, outside libraries stay behind one folder, files stay readable."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "autoguidance"
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

# Outside library -> the only places that may import it, also inside functions.
HOMES = {
    "optuna": ("tune/",),
    "matplotlib": ("report/",),
    "typer": ("cli/",),
    "click": (),  # typer carries its own copy, whose exceptions are other classes; click itself need not be installed
    "rich": ("cli/",),
    "tyro": ("cli/",),
    "gradio": ("app/",),
    "diffusers": ("interop/", "data/"),  # in data: the VAE encoder
    "datasets": ("data/",),
    "tensorboard": ("train/",),
    "transformers": ("evaluate/",),
    "sqlalchemy": ("tune/",),
    "scipy": (),  # comes with scikit-learn; the tests compare with it
    "torchvision": (),  # its import fails beside the CPU build of torch, and then breaks others too
}
NOT_AT_IMPORT = (
    "optuna",
    "sqlalchemy",
    "transformers",
    "scipy",
    "diffusers",
    "gradio",
    "matplotlib",
    "typer",
    "tyro",
    "rich",
    "sklearn",
    "datasets",
)
MAX_LINES = 500


def imported(source: str) -> Iterator[str]:
    """Full names of the modules that a source imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def strangers(module: str, source: str) -> list[str]:
    """Outside libraries that a module (its path in the package) imports though their home is elsewhere."""
    roots = {name.partition(".")[0] for name in imported(source)}
    return sorted(root for root in roots & HOMES.keys() if not module.startswith(HOMES[root]))


def test_the_checks_below_would_notice():
    source = "def f():\n    from matplotlib.figure import Figure\nimport optuna.samplers\nfrom . import rich"
    assert sorted(imported(source)) == ["matplotlib.figure", "optuna.samplers"]
    assert strangers("tune/search.py", source) == ["matplotlib"]
    assert strangers("report/plots.py", source) == ["optuna"]
    assert strangers("train/loop.py", "import torchvision") == ["torchvision"]
    assert "report/page.py" in MODULES


@pytest.mark.parametrize("module", MODULES)
def test_outside_libraries_stay_behind_their_folder(module):
    assert strangers(module, (PACKAGE / module).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_is_and_stays_readable(module):
    source = (PACKAGE / module).read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source)) or ""
    assert docstring, f"{module} has no docstring"
    num_lines = source.count("\n")
    assert num_lines <= MAX_LINES or f"{MAX_LINES} lines" in docstring, (
        f"{module} has {num_lines} lines and does not say why"
    )


def test_imports_go_to_a_lower_layer_only():
    command = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True, no_logo=True))"
    run = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 kept, 0 broken" in run.stdout


def test_importing_the_package_imports_no_heavy_library():
    command = "import sys, autoguidance; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "autoguidance" in loaded
    assert sorted(loaded & set(NOT_AT_IMPORT)) == []


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_constraints_pin_what_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    wanted = [Requirement(text) for text in (*project["dependencies"], *(text for extra in extras for text in extra))]
    for requirement in wanted:
        if requirement.name != project["name"]:
            version = pins().get(canonicalize_name(requirement.name))
            assert version is not None, f"constraints.txt does not pin {requirement.name}"
            assert requirement.specifier.contains(version), f"{requirement} excludes {version} of constraints.txt"


def test_direct_imports_are_declared_dependencies():
    """What the package imports from outside is in pyproject.toml: an environment made from it has everything."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = (*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra))
    declared = {canonicalize_name(re.split(r"[^\w.-]", text)[0]) for text in texts}
    owners = importlib.metadata.packages_distributions()
    missing = set()
    for module in MODULES:
        for name in imported((PACKAGE / module).read_text(encoding="utf-8")):
            root = name.partition(".")[0]
            if root in sys.stdlib_module_names or root == "autoguidance" or root not in owners:
                continue
            if not {canonicalize_name(owner) for owner in owners[root]} & declared:
                missing.add((module, root))
    assert missing == set()
