"""The install cell where the package is missing, as on Colab: torch stays as it was."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "3_3_feed_forward.ipynb"
# What stands on Colab before a reader opens a notebook, and nothing else.
PRESENT = ("torch", "numpy", "matplotlib", "ipykernel")
FREEZE = (
    "import json; from importlib.metadata import distributions as d; "
    "print(json.dumps({x.name.lower(): x.version for x in d()}))"
)


def freeze(python: Path) -> dict[str, str]:
    return json.loads(subprocess.check_output([python, "-Ic", FREEZE], text=True))


@pytest.fixture
def checkout(tmp_path):
    """The files the package is built from, apart, so that no build is left behind."""
    folder = tmp_path / "checkout"
    shutil.copytree(
        ROOT / "annotated_transformer",
        folder / "annotated_transformer",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.mark.slow
def test_a_notebook_runs_where_only_torch_is(tmp_path, checkout):
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    pins = [f"{name}=={version(name)}" for name in PRESENT]
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *pins], check=True, timeout=900
    )
    before = freeze(python)
    assert "annotated-transformer" not in before and "sentencepiece" not in before

    specification = tmp_path / "kernels" / "fresh" / "kernel.json"
    specification.parent.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    specification.write_text(
        json.dumps({"argv": command, "display_name": "fresh", "language": "python"})
    )

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells[1].source += "\nimport annotated_transformer; annotated_transformer"
    client = NotebookClient(notebook, timeout=600, kernel_name="fresh")
    client.create_kernel_manager()
    client.km.kernel_spec_manager.kernel_dirs = [str(tmp_path / "kernels")]
    (tmp_path / "work").mkdir()
    client.execute(
        env={**os.environ, "ANNOTATED_TRANSFORMER_SOURCE": str(checkout)},
        cwd=str(tmp_path / "work"),
    )

    after = freeze(python)
    assert "annotated-transformer" in after and "sentencepiece" in after
    assert after["torch"] == before["torch"]
    assert {name: after[name] for name in before} == before
    imported = notebook.cells[1].outputs[-1].data["text/plain"]
    assert str(environment) in imported, f"the notebook used {imported}"


def test_the_install_cell_does_nothing_where_the_package_is():
    cell = nbformat.read(NOTEBOOK, as_version=4).cells[1]
    assert "annotated_transformer" in cell.source
    assert cell.outputs == []
