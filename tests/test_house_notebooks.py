"""What every notebook keeps to, so that a diff shows what changed."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from compared import LIMIT, count, is_compared
from execute import CELL_METADATA, NOTEBOOK_METADATA, execute

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TAGS = {
    "hide-cell",
    "hide-input",
    "hide-output",
    "remove-cell",
    "remove-input",
    "nbval-ignore-output",
}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_opens_with_one_title(notebook):
    titles = [
        line
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("# ")
    ]
    assert len(titles) == 1
    assert notebook.cells[0].source.startswith(titles[0])


def test_its_metadata_is_clean(notebook):
    assert notebook.metadata == NOTEBOOK_METADATA
    for cell in notebook.cells:
        assert set(cell.metadata) <= CELL_METADATA
        assert set(cell.metadata.get("tags", [])) <= TAGS
        assert not any(output.get("metadata") for output in cell.get("outputs", []))


def test_its_cells_have_ids_of_their_own(notebook):
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


def test_it_was_run_once_from_top_to_bottom(notebook):
    ran = [cell.execution_count for cell in code_cells(notebook) if cell.source]
    assert ran == list(range(1, len(ran) + 1)), "run `make execute`"


def test_nothing_went_to_standard_error(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text


def test_an_output_that_is_not_compared_is_asserted(notebook):
    for cell in code_cells(notebook):
        if "nbval-ignore-output" in cell.metadata.get("tags", []):
            tree = ast.parse(cell.source)
            asserts = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
            assert asserts, f"a cell that cannot fail:\n{cell.source}"


def test_every_exercise_has_one_number_and_one_solution(notebook):
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    _, _, exercises = text.partition("\n## Exercises\n")
    asked, _, solved = exercises.partition("<details>")
    asked = re.findall(r"^(\d+)\. ", asked, re.MULTILINE)
    solved = re.findall(r"<summary>Solution (\d+)</summary>", solved)
    assert asked == solved == [str(n + 1) for n in range(len(asked))]


def test_each_figure_says_what_it_shows(notebook):
    for cell in code_cells(notebook):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            told = cell.metadata.get("mystnb", {})
            assert told.get("figure", {}).get("caption"), f"no caption:\n{cell.source}"
            assert told.get("image", {}).get("alt"), f"no alt text:\n{cell.source}"


def test_a_table_that_a_cell_makes_is_read_as_one(notebook):
    """Without this the book shows the bars of its source."""
    for cell in code_cells(notebook):
        if any("text/markdown" in output.get("data", {}) for output in cell.outputs):
            settings = cell.metadata.get("mystnb", {})
            assert settings.get("markdown_format") == "myst", cell.id


def test_every_notebook_is_in_the_table_of_contents():
    contents = (ROOT / "book" / "_toc.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"file: notebooks/(\S+)", contents))
    assert listed == {path.stem for path in NOTEBOOKS}


def test_few_cells_are_left_uncompared():
    total, _, loose = count(NOTEBOOKS)
    assert len(loose) <= LIMIT * total, "\n".join(loose)


def cell(source="1 + 1", execution_count=1, **metadata):
    made = nbformat.v4.new_code_cell(source, execution_count=execution_count)
    made.metadata.update(metadata)
    return made


def test_what_counts_as_compared():
    assert is_compared(cell())
    assert not is_compared(cell(execution_count=None))
    assert not is_compared(cell(tags=["nbval-ignore-output"]))
    assert not is_compared(cell("# NBVAL_SKIP\n1 + 1"))


def test_executing_keeps_ids_and_what_authors_wrote(tmp_path):
    path = tmp_path / "a.ipynb"
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        cell("x = 2", None, tags=["hide-cell"], scrolled=True),
        cell("print(x)\nprint(x + 1)", None, mystnb={"code_prompt_show": "Run"}),
    ]
    ids = [made.id for made in notebook.cells]
    nbformat.write(notebook, path)
    execute(path, timeout=60)
    first = path.read_bytes()
    done = nbformat.read(path, as_version=4)
    assert [made.id for made in done.cells] == ids
    assert done.cells[0].metadata == {"tags": ["hide-cell"]}
    assert done.cells[1].metadata == {"mystnb": {"code_prompt_show": "Run"}}
    assert [output.text for output in done.cells[1].outputs] == ["2\n3\n"]
    execute(path, timeout=60)
    assert path.read_bytes() == first


def test_a_notebook_that_fails_is_left_as_it_was(tmp_path):
    path = tmp_path / "a.ipynb"
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [cell("1 / 0", None)]
    nbformat.write(notebook, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        execute(path, timeout=60)
    assert path.read_bytes() == before
