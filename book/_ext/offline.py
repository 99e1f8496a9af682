"""Leaves out what Jupyter Book adds to each page and could ask the network for.

The book has no live cells: Thebe, which would load itself from elsewhere, stays out.
"""

from sphinx.application import Sphinx

UNWANTED = ("sphinx_thebe", "sphinx_comments")


def disconnect(app: Sphinx, _config) -> None:
    """Unhooks the unwanted extensions from every event, before a page is read."""
    for listeners in app.events.listeners.values():
        for listener in list(listeners):
            if listener.handler.__module__.startswith(UNWANTED):
                listeners.remove(listener)
    styles = app.registry.css_files
    styles[:] = [style for style in styles if style[0] != "sphinx-thebe.css"]


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", disconnect, priority=1000)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
