"""The layers of the design hold: who may import whom, and what start-up may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from mdcli import registry

PACKAGE = Path(__file__).parents[1] / "mdcli"
PURE = {"dicom", "imaging", "inference", "checking", "phantom"}
MIDDLE = {
    "patients",
    "workspace",
    "records",
    "execution",
    "reporting",
    "registry",
    "cohort",
    "model_folders",
    "scan_index",
    "testing",
    "user_cache",
}
BASE = {"errors", "stage", "__init__", "__version__"}
HEAVY = (
    "numpy",
    "pydicom",
    "highdicom",
    "SimpleITK",
    "onnxruntime",
    "torch",
    "docker",
    "nibabel",
    "jsonschema",
    "yaml",
    "PIL",
)
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports_of(path):
    """Return the rooms of mdcli that a file imports at run time, wherever the import stands."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "mdcli" else [node.module]
        found |= {tuple(name.split(".")[1:]) for name in names if name.split(".")[0] == "mdcli" and "." in name}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    room = room_of(path)
    for target in imports_of(path):
        to = target[0]
        if room in PURE:
            assert to in PURE | BASE, f"the pure library imports {'.'.join(target)}"
        elif room in BASE:
            assert to in BASE
        elif room in MIDDLE:
            assert to in PURE | BASE | MIDDLE, f"{room} imports {'.'.join(target)}"
        elif room == "stages":
            assert to in PURE | BASE | MIDDLE, f"a stage imports {'.'.join(target)}"
        elif room == "commands":
            assert to not in ("cli", "stages"), f"a command imports {'.'.join(target)}"


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) in PURE], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_pure_library_knows_no_terminal_environment_or_current_folder(path):
    source = path.read_text()
    words = ("environ", "getenv", ".cwd(", "getcwd", "Path.home", "expanduser", "typer", "rich", "print(", "sys.std")
    for word in words:
        assert word not in source, f"{word} in the pure library"


@pytest.mark.parametrize(
    "module", [*registry.STAGES.values(), *registry.COMMANDS.values(), "mdcli.cli.main", "mdcli.cli.adapter"]
)
def test_importing_a_stage_or_command_loads_nothing_heavy(module):
    script = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_nothing_heavy():
    script = (
        "import sys\nfrom mdcli.cli.main import run\nrun(['--help'])\n"
        f"print([m for m in {(*HEAVY, 'rich', 'mdcli.stages.infer')!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("word", [*registry.STAGES, *registry.COMMANDS])
def test_every_word_has_a_help_line_of_at_most_55_characters(word):
    line = registry.summary(word)
    assert 0 < len(line) <= 55
    assert line[0].isupper() and line.endswith(".")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_are_absolute_and_modules_are_named_where_they_are_used(path):
    tree = ast.parse(path.read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    if path.name != "registry.py":
        assert "import_module(" not in path.read_text() and "__import__" not in path.read_text()
