"""The public address: stated once, used alike everywhere, set by one command."""

import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import nbformat
import pytest
from address import (
    UNSET,
    furnish,
    notebook_problems,
    replace,
    set_address,
    stated,
    text_files,
)

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def uses(root):
    """Every address of this project in the files of `root`: (file, owner/name)."""
    name = stated(root).split("/")[1]
    host = r"(?:github|github\.com|githubusercontent\.com)"
    pattern = re.compile(rf"{host}/([\w.-]+/{re.escape(name)})(?![\w-])")
    return [
        (path.relative_to(root).as_posix(), found)
        for path in text_files(root)
        for found in pattern.findall(path.read_text(encoding="utf-8"))
    ]


@pytest.fixture
def copy(tmp_path):
    """A copy of every file whose address the tool would set, under version control."""
    for path in text_files(ROOT):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    return tmp_path


def test_every_use_agrees_with_pyproject():
    address = stated(ROOT)
    found = uses(ROOT)
    assert not [use for use in found if use[1] != address]
    used_in = sorted({name for name, _ in found})
    assert {"pyproject.toml", "_config.yml", "CITATION.cff"} <= set(used_in)
    if address.startswith(f"{UNSET}/"):
        warnings.warn(
            f"the public address is not set: `make address REPO=owner/name` would set "
            f"it in {', '.join(used_in)}",
            stacklevel=1,
        )


def test_setting_it_leaves_no_placeholder(copy):
    old = stated(copy)
    set_address(copy, "someone/some-book")
    assert stated(copy) == "someone/some-book"
    for path in text_files(copy):
        text = path.read_text(encoding="utf-8")
        assert f"{UNSET}/" not in text, path
        assert f"{old.split('/')[0]}.github.io" not in text, path
    assert {found for _, found in uses(copy)} == {"someone/some-book"}
    assert len(uses(copy)) == len(uses(ROOT))


def test_setting_it_twice_changes_nothing_and_back_restores(copy):
    old = stated(copy)
    before = {path: path.read_bytes() for path in text_files(copy)}
    assert set_address(copy, "someone/some-book")
    assert not set_address(copy, "someone/some-book")
    set_address(copy, old)
    assert {path: path.read_bytes() for path in text_files(copy)} == before


@pytest.mark.parametrize(
    "repo", ["someone", "https://github.com/a/b", "a/b/c", "a b/c"]
)
def test_an_address_that_is_none_is_refused(copy, repo):
    tool = ROOT / "tools" / "address.py"
    done = subprocess.run(
        [sys.executable, tool, "--root", copy, repo], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.strip() == f"address: REPO={repo}: an address is owner/name"
    assert stated(copy) == stated(ROOT)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_notebook_has_its_badge_and_install_cell(path):
    assert not notebook_problems(path, stated(ROOT)), "run `make address`"


def test_a_new_notebook_gets_its_badge_and_install_cell(tmp_path):
    path = tmp_path / "9_new.ipynb"
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_markdown_cell("# 9 New\n\nWhy another?"),
        nbformat.v4.new_code_cell("print(1)"),
    ]
    nbformat.write(notebook, path)
    assert len(notebook_problems(path, "a/b")) == 2
    furnish(path, "a/b")
    assert not notebook_problems(path, "a/b")
    furnish(path, "c/d")
    assert not notebook_problems(path, "c/d")
    cells = nbformat.read(path, as_version=4).cells
    assert len(cells) == 3
    assert cells[0].source.splitlines()[0] == "# 9 New"
    assert cells[0].source.endswith("\n\nWhy another?")


def test_only_this_project_is_renamed():
    text = "github.com/me/book github.com/me/book-2 github.com/other/book me/book"
    expected = "github.com/you/b github.com/me/book-2 github.com/other/book me/book"
    assert replace(text, "me/book", "you/b") == expected
    pages = replace("https://me.github.io/book/x", "me/book", "you/b")
    assert pages == "https://you.github.io/b/x"
