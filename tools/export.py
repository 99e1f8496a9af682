"""Write the package from the notebooks.

nbdev says which cells belong to which module (`#| default_exp`, `#| export`,
`#| exporti`) and which names are public. What it would leave between the cells is not
written: a module comes out as a person would have typed it, with one line that names
its notebook, a docstring, the imports, `__all__`, and the definitions in reading order.
Modules that no notebook exports are left alone.
"""

import argparse
import ast
import difflib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from nbdev.export import nb_export
from nbdev.maker import ModuleMaker

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "annotated_transformer"
HEADER = re.compile(
    r"^# Written in (notebooks/\S+\.ipynb(?:, notebooks/\S+\.ipynb)*); edit it there\.$"
)


class ExportError(Exception):
    """A notebook that cannot be exported: the message names notebook and cell."""


class Collector(ModuleMaker):
    """Keeps the cells of each module where nbdev would write a file."""

    modules: dict[str, dict] = {}

    def __init__(self, dest, name, nb_path, **_):
        self.name, self.notebook = name, Path(nb_path).name

    def make(self, cells, all_cells=None, lib_path=None):
        module = self.modules.setdefault(
            self.name, {"notebooks": [], "cells": [], "public": []}
        )
        module["notebooks"].append(f"notebooks/{self.notebook}")
        for cell in cells:
            if cell.cell_type == "code":
                check_cell(
                    cell.source, f"notebooks/{self.notebook}, cell {cell.idx_ + 1}"
                )
                module["cells"].append(cell.source)
        module["public"] += [
            name for name in self.make_all(all_cells) if name not in module["public"]
        ]


def check_cell(source: str, where: str) -> None:
    """Raises ExportError unless the cell is Python that a module may contain."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        message = f"an exported cell must be plain Python ({error.msg})"
        raise ExportError(f"{where}, line {error.lineno}: {message}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            message = f"import from {PACKAGE}.<module>, not from {PACKAGE}"
            raise ExportError(f"{where}, line {node.lineno}: {message}")


def relative_imports(source: str) -> str:
    """Turns `from annotated_transformer.x import y` into `from .x import y`."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            f"{PACKAGE}."
        ):
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = line.replace(f"from {PACKAGE}.", "from .", 1)
    return "\n".join(lines)


def split_cell(source: str) -> tuple[str, list[str], str]:
    """An exported cell as (leading docstring, import statements, everything else).

    A comment that stands directly above an import goes with it.
    """
    lines = source.splitlines()
    docstring, imports, taken = "", [], set()
    for position, node in enumerate(ast.parse(source).body):
        first, last = node.lineno - 1, node.end_lineno
        if (
            position == 0
            and isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
        ):
            if isinstance(node.value.value, str):
                docstring = "\n".join(lines[first:last])
                taken.update(range(first, last))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            while (
                first > 0
                and first - 1 not in taken
                and lines[first - 1].startswith("#")
            ):
                first -= 1
            imports.append("\n".join(lines[first:last]))
            taken.update(range(first, last))
    rest = "\n".join(line for number, line in enumerate(lines) if number not in taken)
    return docstring, imports, rest.strip("\n")


def assemble(module: dict) -> str:
    """The text of one module, before formatting."""
    docstring, imports, bodies = "", [], []
    for source in module["cells"]:
        doc, found, rest = split_cell(relative_imports(source.strip("\n")))
        if doc and not docstring and not bodies:
            docstring = doc
        elif doc:
            rest = f"{doc}\n{rest}"
        imports += [statement for statement in found if statement not in imports]
        if rest.strip():
            bodies.append(rest)
    public = ", ".join(f'"{name}"' for name in module["public"])
    parts = [
        f"# Written in {', '.join(module['notebooks'])}; edit it there.\n{docstring}"
    ]
    parts += ["\n".join(imports)] if imports else []
    parts += [f"__all__ = [{public}]"] if public else []
    return "\n\n".join(parts) + "\n\n\n" + "\n\n\n".join(bodies) + "\n"


def tidy(folder: Path, config: Path) -> None:
    """Sorts and merges the imports, drops the unused, and formats, all by ruff."""
    ruff = [sys.executable, "-m", "ruff"]
    settings = ["--config", str(config), "--no-cache", "--quiet"]
    rules = ["--select", "I,F401,F811", "--fix-only"]
    for command in (["check", *rules], ["format"]):
        done = subprocess.run(
            [*ruff, *command, *settings, str(folder)], capture_output=True, text=True
        )
        if done.returncode:
            message = (done.stdout + done.stderr).strip()
            raise ExportError(f"ruff {command[0]}: {message}")


def export(root: Path) -> dict[str, str | None]:
    """The text of every module that the notebooks under `root` export, by its path.

    A module that a notebook once wrote and none writes any more maps to None.
    """
    Collector.modules = {}
    for notebook in sorted((root / "notebooks").glob("*.ipynb")):
        try:
            nb_export(notebook, lib_path=root / PACKAGE, mod_maker=Collector)
        except ExportError:
            raise
        except Exception as error:
            message = f"notebooks/{notebook.name}: {type(error).__name__}: {error}"
            raise ExportError(message) from error
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / PACKAGE
        folder.mkdir()
        for name, module in Collector.modules.items():
            (folder / f"{name}.py").write_text(assemble(module), encoding="utf-8")
        if Collector.modules:
            tidy(folder, root / "pyproject.toml")
        files = {
            f"{PACKAGE}/{path.name}": path.read_text(encoding="utf-8")
            for path in sorted(folder.glob("*.py"))
        }
    for path in sorted((root / PACKAGE).glob("*.py")):
        name = f"{PACKAGE}/{path.name}"
        first_line = path.read_text(encoding="utf-8").partition("\n")[0]
        if name not in files and HEADER.match(first_line):
            files[name] = None
    return files


def read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if out of step"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    try:
        files = export(root)
    except ExportError as error:
        print(f"export: {error}", file=sys.stderr)
        return 1

    changed = [name for name, new in files.items() if new != read(root / name)]
    for name in changed:
        path, new = root / name, files[name]
        if arguments.check:
            old_lines, new_lines = (
                (read(path) or "").splitlines(),
                (new or "").splitlines(),
            )
            print(
                *difflib.unified_diff(old_lines, new_lines, name, "notebooks"), sep="\n"
            )
        elif new is None:
            path.unlink()
            print(f"removed  {name}: no notebook exports it any more")
        else:
            path.write_text(new, encoding="utf-8")
            print(f"written  {name}")
    if arguments.check and changed:
        print(
            f"export: {len(changed)} module(s) out of step; run `make export`",
            file=sys.stderr,
        )
        return 1
    print(f"{len(files)} module(s) exported, {len(changed)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
