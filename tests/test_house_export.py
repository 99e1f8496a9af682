"""The package is what the notebooks export, and reads as if written by hand."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from export import ExportError, export

ROOT = Path(__file__).resolve().parent.parent

LAYERS = [
    "#| default_exp layers",
    '#| export\n"""Layers (§3.1)."""\n\nfrom torch import nn\nimport math\nimport json',
    "print(1 + 1)",
    "#| export\n# Why this constant.\nLIMIT = math.inf\n\n\nclass Layer(nn.Module):\n"
    '    """One layer."""\n',
    "#| exporti\ndef _hidden():\n    return LIMIT",
    "#| export model\n"
    '"""The model."""\nfrom annotated_transformer.layers import Layer\nimport math',
    "#| export model\nclass Model(Layer):\n    size = math.tau",
    "#| export\nimport copy\n\n\ndef clone(layer):\n    return copy.deepcopy(layer)",
]
EXPECTED_LAYERS = '''\
# Written in notebooks/3_1_layers.ipynb; edit it there.
"""Layers (§3.1)."""

import copy
import math

from torch import nn

__all__ = ["LIMIT", "Layer", "clone"]


# Why this constant.
LIMIT = math.inf


class Layer(nn.Module):
    """One layer."""


def _hidden():
    return LIMIT


def clone(layer):
    return copy.deepcopy(layer)
'''
EXPECTED_MODEL = '''\
# Written in notebooks/3_1_layers.ipynb; edit it there.
"""The model."""

import math

from .layers import Layer

__all__ = ["Model"]


class Model(Layer):
    size = math.tau
'''


@pytest.fixture
def project(tmp_path):
    """A repository of one notebook, and a way to give its cells."""
    (tmp_path / "annotated_transformer").mkdir()
    (tmp_path / "notebooks").mkdir()
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(settings, encoding="utf-8")

    def with_cells(*sources):
        notebook = nbformat.v4.new_notebook()
        notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
        nbformat.write(notebook, tmp_path / "notebooks" / "3_1_layers.ipynb")
        return tmp_path

    return with_cells


def run(root, *arguments):
    command = [sys.executable, ROOT / "tools" / "export.py", "--root", root, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_modules_come_out_as_written_by_hand(project):
    files = export(project(*LAYERS))
    assert files["annotated_transformer/layers.py"] == EXPECTED_LAYERS
    assert files["annotated_transformer/model.py"] == EXPECTED_MODEL
    assert len(files) == 2


def test_a_second_export_changes_nothing(project):
    root = project(*LAYERS)
    assert "2 changed" in run(root).stdout
    assert "0 changed" in run(root).stdout
    written = {path.name for path in (root / "annotated_transformer").iterdir()}
    assert written == {"layers.py", "model.py"}


def test_check_sees_an_edited_module_and_leaves_it(project):
    root = project(*LAYERS)
    run(root)
    assert run(root, "--check").returncode == 0
    module = root / "annotated_transformer" / "model.py"
    edited = module.read_text().replace("tau", "pi")
    module.write_text(edited)
    checked = run(root, "--check")
    assert checked.returncode == 1
    assert "math.tau" in checked.stdout and "make export" in checked.stderr
    assert module.read_text() == edited


def test_modules_without_a_notebook_are_left_alone(project):
    root = project(*LAYERS)
    face = root / "annotated_transformer" / "__init__.py"
    face.write_text("by_hand = 1\n")
    run(root)
    assert face.read_text() == "by_hand = 1\n"


def test_a_module_no_longer_exported_goes(project):
    root = project(*LAYERS)
    run(root)
    project(*[cell for cell in LAYERS if "model" not in cell])
    assert "removed  annotated_transformer/model.py" in run(root).stdout
    assert not (root / "annotated_transformer" / "model.py").exists()


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("#| export\n%matplotlib inline", "cell 2, line 1: .* plain Python"),
        (
            "#| export\nfrom annotated_transformer import Model",
            "cell 2, line 1: import",
        ),
    ],
)
def test_a_cell_that_cannot_be_exported_is_named(project, cell, message):
    with pytest.raises(ExportError, match=f"notebooks/3_1_layers.ipynb, {message}"):
        export(project(LAYERS[0], cell))


def test_the_package_is_in_step_with_the_notebooks():
    behind = [
        name
        for name, text in export(ROOT).items()
        if not (ROOT / name).exists() or (ROOT / name).read_text() != text
    ]
    assert not behind, f"run `make export`: {behind}"


MODULES = sorted((ROOT / "annotated_transformer").glob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_each_module_reads_as_written_by_hand(path):
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    assert ast.get_docstring(tree), f"{path.name} has no docstring"
    assert "# %%" not in source and "#|" not in source


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_each_public_name_is_there(path):
    if path.stem == "__main__":  # importing it would run the command
        return
    module = importlib.import_module(f"annotated_transformer.{path.stem}")
    for name in getattr(module, "__all__", []):
        assert hasattr(module, name), f"{path.name} has no {name}"
    if "notebooks/" in path.read_text(encoding="utf-8").partition("\n")[0]:
        assert module.__all__


def test_a_chapter_imports_only_from_earlier_ones():
    """`model` knows no training, nothing knows `cli`: the direction of imports."""
    forbidden = {"model": {"training"}, "training": {"decoding"}}
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {
            node.module.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        }
        if path.stem != "__main__":
            assert "cli" not in imported, path.name
        assert not imported & forbidden.get(path.stem, set()), path.name
