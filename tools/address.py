"""Set the repository's public address wherever it is used.

The address stands in pyproject.toml. `make address REPO=owner/name` writes a new one
there and into every file that uses it; without REPO it puts the present one into the
Colab badge and install cell of each notebook, which is how a new notebook gets them.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
UNSET = "OWNER"
REPOSITORY = re.compile(r'^Repository = "https://github\.com/([\w.-]+/[\w.-]+)"$', re.M)
HOSTS = (
    "github.com/",
    "raw.githubusercontent.com/",
    "colab.research.google.com/github/",
)
BADGE = (
    "[![Open in Colab](../book/_static/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{address}/blob/main/notebooks/{name})"
)
INSTALL_METADATA = {
    "tags": ["hide-cell"],
    "mystnb": {"code_prompt_show": "Install the package where it is missing"},
}
INSTALL_CELL = """\
# Where the package is missing, as on Colab, install it; the torch that is there stays.
import importlib.util

if importlib.util.find_spec("annotated_transformer") is None:
    import os
    from importlib.metadata import version

    address = "git+https://github.com/{address}"
    source = os.environ.get("ANNOTATED_TRANSFORMER_SOURCE", address)
    present = f"torch=={{version('torch')}}"
    %pip install --quiet {{present}} {{source}}"""


class AddressError(Exception):
    """An address, or a notebook, that cannot be worked with."""


def stated(root: Path) -> str:
    """The `owner/name` that pyproject.toml states."""
    found = REPOSITORY.search((root / "pyproject.toml").read_text(encoding="utf-8"))
    if not found:
        raise AddressError('pyproject.toml: no Repository = "https://github.com/…"')
    return found[1]


def text_files(root: Path) -> list[Path]:
    """Every text file that git keeps, or would, except the tools and tests."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(
        command, cwd=root, check=True, capture_output=True, text=True
    )
    paths = (root / name for name in listed.stdout.split("\0") if name)
    left_out = (root / "tools", root / "tests", root / "book" / "_static" / "mathjax")
    kinds = {".cff", ".cfg", ".ipynb", ".md", ".py", ".svg", ".toml", ".yml", ".yaml"}
    return [
        path
        for path in paths
        if path.suffix in kinds
        and path.is_file()
        and not any(path.is_relative_to(folder) for folder in left_out)
    ]


def replace(text: str, old: str, new: str) -> str:
    """`text` with the address `old` turned into `new`, on GitHub, Colab and Pages."""
    for host in HOSTS:
        text = re.sub(re.escape(host + old) + r"(?![\w-])", host + new, text)
    pages = "https://{}.github.io/{}"
    return text.replace(pages.format(*old.split("/")), pages.format(*new.split("/")))


def notebook_problems(path: Path, address: str) -> list[str]:
    """What is wrong with a notebook's badge and install cell."""
    cells = nbformat.read(path, as_version=4).cells
    badge = BADGE.format(address=address, name=path.name)
    install = INSTALL_CELL.format(address=address)
    problems = []
    if not cells or cells[0].cell_type != "markdown" or badge not in cells[0].source:
        problems.append(
            f"notebooks/{path.name}: the first cell lacks the badge {badge}"
        )
    if len(cells) < 2 or cells[1].cell_type != "code" or cells[1].source != install:
        problems.append(
            f"notebooks/{path.name}: the second cell is not the install cell"
        )
    elif cells[1].metadata != INSTALL_METADATA:
        problems.append(
            f"notebooks/{path.name}: the install cell is not folded as in the others"
        )
    return problems


def furnish(path: Path, address: str) -> None:
    """Puts the badge under a notebook's title and the install cell after it."""
    notebook = nbformat.read(path, as_version=4)
    cells = notebook.cells
    if not cells or not cells[0].source.startswith("# "):
        raise AddressError(f"notebooks/{path.name}: the first cell must be `# Title`")
    title, *rest = cells[0].source.splitlines()
    rest = [line for line in rest if not line.startswith("[![Open in Colab]")]
    below = "\n".join(rest).strip("\n")
    badge = BADGE.format(address=address, name=path.name)
    cells[0].source = "\n\n".join(filter(None, (title, badge, below)))

    source = INSTALL_CELL.format(address=address)
    second = cells[1] if len(cells) > 1 else None
    if second and 'find_spec("annotated_transformer")' in second.source:
        second.source = source
    else:
        second = nbformat.v4.new_code_cell(source, id="install", execution_count=1)
        cells.insert(1, second)
    second.metadata = nbformat.from_dict(INSTALL_METADATA)
    nbformat.write(notebook, path)


def set_address(root: Path, new: str | None) -> list[str]:
    """Writes the address into each file that uses it; returns the files changed."""
    old = stated(root)
    new = new or old
    if not re.fullmatch(r"[A-Za-z0-9-]+/[\w.-]+", new):
        raise AddressError(f"REPO={new}: an address is owner/name")
    changed = []
    for path in text_files(root):
        before = path.read_text(encoding="utf-8")
        after = replace(before, old, new)
        if after != before:
            path.write_text(after, encoding="utf-8")
        if path.suffix == ".ipynb" and notebook_problems(path, new):
            furnish(path, new)
        if path.read_text(encoding="utf-8") != before:
            changed.append(path.relative_to(root).as_posix())
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repo", nargs="?", metavar="owner/name")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository")
    arguments = parser.parse_args()
    try:
        changed = set_address(arguments.root.resolve(), arguments.repo)
        address = stated(arguments.root)
    except AddressError as error:
        print(f"address: {error}", file=sys.stderr)
        return 1
    print(*(f"written  {name}" for name in changed), sep="\n")
    unset = address.startswith(f"{UNSET}/")
    print(
        f"{address}: "
        + ("not set yet: make address REPO=owner/name" if unset else "set")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
