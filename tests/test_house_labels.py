"""The label above an exported cell is there, leads to the source; no marker is left."""

import re
from pathlib import Path

import nbformat
import pytest
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

ROOT = Path(__file__).resolve().parent.parent

CONFIGURATION = f"""
import sys
sys.path.insert(0, {str(ROOT / "book" / "_ext")!r})
extensions = ["myst_nb", "exported_cells", "sphinx_copybutton"]
nb_execution_mode = "off"
myst_url_schemes = ["http", "https", "source"]
"""
MODULE = '''\
# Written in notebooks/3_2_toy.ipynb; edit it there.
"""A toy."""

SIZE = 1


@staticmethod
def attend(x):
    return x


class Attention:
    size: int = SIZE
'''
CELLS = [
    (
        "markdown",
        "# 3.2 Toy\n\n[The class](../annotated_transformer/toy.py#Attention).",
    ),
    ("code", "#| default_exp toy"),
    ("code", '#| export\n"""A toy."""\n\nSIZE = 1'),
    ("code", "#| export\n\ndef attend(x):\n    return x"),
    ("code", "#| exporti other\nclass Other:\n    pass"),
    ("code", "print('plain')"),
    ("code", "#| export\nclass Attention:\n    size: int = SIZE"),
]


def build(folder, cells=CELLS):
    """Builds a book of one notebook: its page, all warnings, the output folder."""
    notebooks, package = folder / "notebooks", folder / "annotated_transformer"
    notebooks.mkdir()
    package.mkdir()
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["language_info"] = {"name": "python"}
    kinds = {
        "markdown": nbformat.v4.new_markdown_cell,
        "code": nbformat.v4.new_code_cell,
    }
    notebook.cells = [kinds[kind](source) for kind, source in cells]
    notebook.cells[-1].metadata["tags"] = ["hide-cell"]
    nbformat.write(notebook, notebooks / "3_2_toy.ipynb")
    (package / "toy.py").write_text(MODULE)
    (package / "other.py").write_text('"""Another."""\n\n\nclass Other:\n    pass\n')
    (folder / "index.md").write_text("# Book\n\n```{toctree}\nnotebooks/3_2_toy\n```\n")
    (folder / "conf.py").write_text(CONFIGURATION)
    warnings = folder / "warnings.txt"
    with patch_docutils(), docutils_namespace(), warnings.open("w") as log:
        out = folder / "html"
        app = Sphinx(folder, folder, out, folder / "tree", "html", {}, None, log)
        app.build()
    page = (out / "notebooks" / "3_2_toy.html").read_text(encoding="utf-8")
    return page, warnings.read_text(), out


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("book"))


def labels(page):
    return re.findall(r'export-label.*?href="([^"]*)"[^>]*>([^<]*)</a>', page, re.S)


def test_each_exported_cell_has_its_label(built):
    page, warnings, _ = built
    assert not warnings
    assert labels(page) == [
        ("../source/toy.html#SIZE", "annotated_transformer/toy.py"),
        ("../source/toy.html#attend", "annotated_transformer/toy.py"),
        ("../source/other.html#Other", "annotated_transformer/other.py"),
        ("../source/toy.html#Attention", "annotated_transformer/toy.py"),
    ]


def test_no_marker_is_left_on_the_page(built):
    page, _, _ = built
    assert "#|" not in page
    assert "default_exp" not in page
    assert "attend" in page and "plain" in page


def test_a_hidden_cell_keeps_its_fold_and_its_label(built):
    page, _, _ = built
    cell = page[page.rindex("tag_hide-cell") :]
    assert cell.index("export-label") < cell.index("<details")


def test_a_label_leads_to_the_definition(built):
    _, _, out = built
    source = (out / "source" / "toy.html").read_text(encoding="utf-8")
    for name in ("SIZE", "attend", "Attention"):
        assert source.count(f'<span id="{name}">') == 1
    decorated = source[source.index('id="attend"') :].splitlines()[0]
    assert "staticmethod" in decorated
    assert '<a href="../notebooks/3_2_toy.html">3.2 Toy</a>' in source


def test_a_link_in_prose_leads_to_the_definition(built):
    page, _, _ = built
    assert 'href="../source/toy.html#Attention">The class</a>' in page


@pytest.mark.parametrize(
    ("cell", "warning"),
    [
        ("#| export\nclass Absent:\n    pass", "toy.py does not define Absent"),
        ("#| export nowhere\nx = 1", "nowhere.py does not exist"),
    ],
)
def test_a_label_that_would_lead_nowhere_is_a_warning(tmp_path, cell, warning):
    _, warnings, _ = build(tmp_path, [*CELLS[:2], ("code", cell)])
    assert warning in warnings


def test_an_export_without_a_module_is_a_warning(tmp_path):
    _, warnings, _ = build(tmp_path, [CELLS[0], ("code", "#| export\nx = 1")])
    assert "no module is named" in warnings
