# Written in notebooks/appendix_command_line.ipynb; edit it there.
"""A page of heat maps: where a model looked for each piece of a translation."""

import html
from pathlib import Path

from .translator import Attention, Translation

__all__ = ["AttentionPage"]


HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Attention</title>
<style>
:root { color-scheme: light dark; font: 1rem/1.4 system-ui, sans-serif; }
body { margin: 1.5rem auto; max-width: 60rem; padding: 0 1rem; }
section { margin: 2.5rem 0; overflow-x: auto; }
table { border-collapse: collapse; }
td { background: rgb(0 114 178 / var(--w)); border: 1px solid rgb(128 128 128 / .25);
  height: 1.5rem; min-width: 1.5rem; }
th { font-weight: normal; white-space: pre; }
thead th { padding: .4rem 0; text-align: left; transform: rotate(180deg);
  writing-mode: vertical-rl; }
tbody th { padding: 0 .5rem; text-align: right; }
</style>
<h1>Where the model looked</h1>
<p>A column is a piece of the source, a row a piece of the translation. The darker the
cell, the more the model looked at the one when it chose the other: encoder-decoder
attention, last layer, mean of its heads. Each row sums to 1. The mark ▁ begins a word,
and &lt;/s&gt; ends a sentence.</p>
"""


class AttentionPage:
    """An HTML file that grows by one heat map for each sentence.

    path: of the file, which must not be there yet. Raises OSError where it is, or
    cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.number = 0
        self.file = open(path, "x", encoding="utf-8")
        self.file.write(HEAD)

    def __enter__(self) -> "AttentionPage":
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def add(self, line: str, translation: Translation, attention: Attention) -> None:
        """One sentence, its translation, and where each piece of it came from."""
        self.number += 1
        columns = "".join(f'<th scope="col">{_shown(s)}</th>' for s in attention.source)
        rows = []
        weights = attention.weights.mean(dim=0).tolist()  # (T, S)
        for piece, row in zip(attention.target, weights, strict=True):
            cells = (f'<td style="--w:{w:.3f}" title="{w:.3f}"></td>' for w in row)
            head = f'<th scope="row">{_shown(piece)}</th>'
            rows.append(f"<tr>{head}{''.join(cells)}</tr>")
        self.file.write(
            f"<section>\n<h2>{self.number}</h2>\n<p>{_shown(line)}<br>"
            f"{_shown(translation.text)}</p>\n<table>\n"
            f"<thead><tr><td></td>{columns}</tr></thead>\n<tbody>\n"
            + "\n".join(rows)
            + "\n</tbody>\n</table>\n</section>\n"
        )
        self.file.flush()


def _shown(text: str) -> str:
    return html.escape(text)
