"""What a reader of the book sees of the export markers, and the pages they lead to.

A cell that starts with `#| export` is part of the package. On the page its `#| …`
lines are gone, and a small label above it names the module and leads to that definition
on a page of highlighted source, built into the book so that it works from disk. Cells
with `#| default_exp` are not shown.

A link from prose to a module, `[…](../annotated_transformer/attention.py#causal_mask)`,
leads to the same page; on GitHub it leads to the file.
"""

import ast
import html
import json
import re
from pathlib import Path

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.application import Sphinx
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
PACKAGE = "annotated_transformer"
PAGES = "source"  # the folder of the built book that holds the pages of source
DIRECTIVE = re.compile(r"^#\|\s*(\w+)\s*:?\s*(.*?)\s*$")
MODULE_LINK = re.compile(rf"\]\((?:\.\./)+{PACKAGE}/(\w+\.py(?:#\w+)?)\)")
HEADER = re.compile(r"notebooks/(\S+)\.ipynb")


def directives(source: str) -> dict[str, str]:
    """The `#| name value` lines of a code cell, as name → value."""
    found = (DIRECTIVE.match(line) for line in source.splitlines())
    return {match[1]: match[2] for match in found if match}


def without_directives(source: str) -> str:
    """A cell's source without its `#| …` lines and the blank lines after them."""
    kept = [line for line in source.splitlines() if not line.startswith("#|")]
    return "\n".join(kept).lstrip("\n")


def defined_names(source: str) -> list[str]:
    """The classes, functions and variables that code defines at its top level."""
    names = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [
                target.id for target in node.targets if isinstance(target, ast.Name)
            ]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
    return names


def prepare(app: Sphinx, docname: str, text: list[str]) -> None:
    """Prepares a page's source before it is parsed: markers and links to modules."""
    if app.env.doc2path(docname).endswith(".ipynb"):
        notebook = json.loads(text[0])
        prepare_cells(notebook["cells"], docname)
        text[0] = json.dumps(notebook)
    else:
        text[0] = MODULE_LINK.sub(r"](source:\1)", text[0])


def prepare_cells(cells: list[dict], docname: str) -> None:
    """Takes the directives out of the code cells, and notes in the metadata of each
    exported one which module it belongs to and what it defines there first."""
    default = None
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            cell["source"] = MODULE_LINK.sub(r"](source:\1)", source)
            continue
        marks = directives(source)
        if not marks:
            continue
        cell["source"] = source = without_directives(source)
        default = marks.get("default_exp", default)
        if "export" in marks or "exporti" in marks:
            module = marks.get("export") or marks.get("exporti") or default
            if module is None:
                message = "a cell is marked for export and no module is named"
                LOGGER.warning(message, location=docname)
                continue
            name = next(iter(defined_names(source)), "")
            cell["metadata"]["exported"] = {"module": module, "name": name}
        elif not source.strip():
            tags = {*cell["metadata"].get("tags", []), "remove-cell"}
            cell["metadata"]["tags"] = sorted(tags)


def source_address(app: Sphinx, docname: str, module: str, name: str) -> str | None:
    """The address, as seen from `docname`, of `name` on a module's page of source."""
    path = package_folder(app) / f"{module}.py"
    if not path.is_file():
        message = f"{PACKAGE}/{module}.py does not exist: run `make export`"
        LOGGER.warning(message, location=docname)
        return None
    if name and name not in defined_names(path.read_text(encoding="utf-8")):
        message = f"{PACKAGE}/{module}.py does not define {name}: run `make export`"
        LOGGER.warning(message, location=docname)
        return None
    return app.builder.get_relative_uri(docname, f"{PAGES}/{module}") + (
        f"#{name}" if name else ""
    )


def package_folder(app: Sphinx) -> Path:
    return Path(app.srcdir) / PACKAGE


def label_cells(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Puts a label above each exported cell; leads links to modules to their pages."""
    if app.builder.format != "html":
        return
    for cell in list(doctree.findall(nodes.container)):
        exported = cell.get("cell_metadata", {}).get("exported")
        if cell.get("nb_element") != "cell_code" or not exported:
            continue
        module, name = exported["module"], exported["name"]
        address = source_address(app, docname, module, name)
        if address:
            link = nodes.reference(
                "", f"{PACKAGE}/{module}.py", refuri=address, internal=True
            )
            link["reftitle"] = f"{name or module} in the package"
            line = nodes.paragraph("", "", link)
            cell.insert(0, nodes.container("", line, classes=["export-label"]))

    for link in doctree.findall(nodes.reference):
        scheme, _, target = link.get("refuri", "").partition(":")
        if scheme == "source":
            path, _, name = target.partition("#")
            address = source_address(app, docname, path.removesuffix(".py"), name)
            link["refuri"], link["internal"] = address or "", True
            link["classes"] = ["reference", "internal"]


def highlighted(source: str) -> str:
    """A module as HTML, with an anchor at each line."""
    formatter = HtmlFormatter(lineanchors="L", wrapcode=True)
    return highlight(source, PythonLexer(stripnl=False), formatter)


def anchored(source: str, page: str) -> str:
    """Adds `id="Name"` anchors to a highlighted module, where each name is defined."""
    for node in ast.parse(source).body:
        for name in defined_names(ast.unparse(node)):
            decorators = getattr(node, "decorator_list", [])
            line = min([node.lineno, *(each.lineno for each in decorators)])
            mark = f'<a id="L-{line}"'
            page = page.replace(
                mark, f'<span id="{html.escape(name)}"></span>{mark}', 1
            )
    return page


def source_pages(app: Sphinx):
    """One page for each module of the package, as Sphinx wants them for writing."""
    if app.builder.format != "html":
        return
    for path in sorted(package_folder(app).glob("*.py")):
        source = path.read_text(encoding="utf-8")
        name = path.stem
        chapters = []
        for notebook in HEADER.findall(source.partition("\n")[0]):
            docname = f"notebooks/{notebook}"
            if docname in app.env.titles:
                title = html.escape(app.env.titles[docname].astext())
                address = app.builder.get_relative_uri(f"{PAGES}/{name}", docname)
                chapters.append(f'<a href="{address}">{title}</a>')
        origin = f"<p>Written in {', '.join(chapters)}.</p>" if chapters else ""
        title = f"{PACKAGE}/{path.name}"
        body = (
            f'<h1>{title}</h1>\n{origin}\n<div class="source-page">'
            f"{anchored(source, highlighted(source))}</div>"
        )
        yield f"{PAGES}/{name}", {"title": title, "body": body}, "page.html"


def setup(app: Sphinx) -> dict:
    app.connect("source-read", prepare)
    app.connect("doctree-resolved", label_cells)
    app.connect("html-collect-pages", source_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
