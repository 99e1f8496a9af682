"""Leaves out what Jupyter Book and its theme add to a page that has no place on disk.

The book has no live cells: Thebe, which would load itself from elsewhere, stays out.
And the theme for Python 3.10 fetches its fonts twice, the first time in a way that
browsers refuse for a page opened from disk: that first time goes.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

UNWANTED = ("sphinx_thebe", "sphinx_comments")
FONT_AHEAD = re.compile(r'<link rel="preload" as="font"[^>]*>\s*')


def disconnect(app: Sphinx, _config) -> None:
    """Unhooks the unwanted extensions from every event, before a page is read."""
    for listeners in app.events.listeners.values():
        for listener in list(listeners):
            if listener.handler.__module__.startswith(UNWANTED):
                listeners.remove(listener)
    styles = app.registry.css_files
    styles[:] = [style for style in styles if style[0] != "sphinx-thebe.css"]


def drop_fonts_ahead(app: Sphinx, failure) -> None:
    """Removes the early font requests from every page that was written."""
    if failure or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        kept = FONT_AHEAD.sub("", text)
        if kept != text:
            page.write_text(kept, encoding="utf-8")


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", disconnect, priority=1000)
    app.connect("build-finished", drop_fonts_ahead)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
