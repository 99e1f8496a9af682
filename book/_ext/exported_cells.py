"""What a reader of the book sees of the export markers, and the pages of source they lead to.

A cell that starts with `#| export` is part of the package. On the page its `#| …` lines are gone, and
a small label above it names the module and leads to that definition on a page of highlighted source,
which is built into the book so that it works from disk. Cells with `#| default_exp` are not shown.

A link to a module from prose, `[the masks](../annotated_transformer/attention.py#padding_mask)`, leads
to the same page; on GitHub it leads to the file.
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
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
PACKAGE = "annotated_transformer"
PAGES = "source"  # the folder of the built book that holds the pages of source
DIRECTIVE = re.compile(r"^#\|\s*(\w+)\s*:?\s*(.*?)\s*$")
HEADER = re.compile(r"notebooks/(\S+)\.ipynb")


def directives(source: str) -> dict[str, str]:
    """The `#| name value` lines of a code cell, as name → value."""
    found = (DIRECTIVE.match(line) for line in source.splitlines())
    return {match[1]: match[2] for match in found if match}


def without_directives(source: str) -> str:
    """A cell's source without its `#| …` lines, and without the blank lines they leave at the top."""
    kept = [line for line in source.splitlines() if not line.startswith("#|")]
    return "\n".join(kept).lstrip("\n")


def defined_names(source: str) -> list[str]:
    """The classes, functions and variables a piece of code defines at its top level, in order."""
    names = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
    return names


def prepare_notebook(app: Sphinx, docname: str, text: list[str]) -> None:
    """Takes the directives out of a notebook before it is parsed, and notes in each exported cell's
    metadata which module it belongs to and what it defines there."""
    if not app.env.doc2path(docname).endswith(".ipynb"):
        return
    notebook = json.loads(text[0])
    default = None
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        marks = directives(source)
        if not marks:
            continue
        source = without_directives(source)
        cell["source"] = source
        metadata = cell["metadata"]
        if "default_exp" in marks:
            default = marks["default_exp"]
        if "export" in marks or "exporti" in marks:
            module = marks.get("export") or marks.get("exporti") or default
            if module is None:
                LOGGER.warning("an exported cell, and no module to export to", location=docname)
                continue
            names = defined_names(source)
            metadata["exported"] = {"module": module, "name": names[0] if names else ""}
        elif not source.strip():
            metadata["tags"] = sorted({*metadata.get("tags", []), "remove-cell"})
    text[0] = json.dumps(notebook)


def source_address(app: Sphinx, docname: str, module: str, name: str) -> str | None:
    """The address, as seen from `docname`, of `name` on a module's page of source."""
    path = package_folder(app) / f"{module}.py"
    if not path.is_file():
        LOGGER.warning("%s/%s.py does not exist: run `make export`", PACKAGE, module, location=docname)
        return None
    if name and name not in defined_names(path.read_text(encoding="utf-8")):
        LOGGER.warning(
            "%s/%s.py does not define %s: run `make export`", PACKAGE, module, name, location=docname
        )
        return None
    return app.builder.get_relative_uri(docname, f"{PAGES}/{module}") + (f"#{name}" if name else "")


def package_folder(app: Sphinx) -> Path:
    return Path(app.srcdir) / PACKAGE


def label_cells(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Puts the label above each exported cell, and leads links to modules to their pages of source."""
    if app.builder.format != "html":
        return
    for cell in list(doctree.findall(nodes.container)):
        exported = cell.get("cell_metadata", {}).get("exported")
        if cell.get("nb_element") != "cell_code" or not exported:
            continue
        module, name = exported["module"], exported["name"]
        address = source_address(app, docname, module, name)
        if address:
            link = nodes.reference("", f"{PACKAGE}/{module}.py", refuri=address, internal=True)
            link["reftitle"] = f"{name or module} in the package"
            line = nodes.paragraph("", "", link)
            cell.insert(0, nodes.container("", line, classes=["export-label"]))

    for node in list(doctree.findall(addnodes.download_reference)):
        match = re.search(rf"{PACKAGE}/(\w+)\.py(?:#(\w+))?$", node.get("reftarget", ""))
        address = match and source_address(app, docname, match[1], match[2] or "")
        if address:
            link = nodes.reference("", "", *node.children, refuri=address, internal=True)
            node.replace_self(link)


def highlighted(source: str) -> str:
    """A module as HTML: numbered lines, and an anchor at each top-level definition."""
    formatter = HtmlFormatter(linenos="table", anchorlinenos=True, lineanchors="L", wrapcode=True)
    return highlight(source, PythonLexer(stripnl=False), formatter)


def anchored(source: str, page: str) -> str:
    """Adds `id="Name"` anchors to a highlighted module, where each name is defined."""
    for node in ast.parse(source).body:
        for name in defined_names(ast.unparse(node)):
            line = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            mark = f'<a id="L-{line}"'
            page = page.replace(mark, f'<span id="{html.escape(name)}"></span>{mark}', 1)
    return page


def source_pages(app: Sphinx):
    """One page for each module of the package, reached from the labels; yields what Sphinx writes."""
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
    app.connect("source-read", prepare_notebook)
    app.connect("doctree-resolved", label_cells)
    app.connect("html-collect-pages", source_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
