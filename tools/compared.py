"""Count the notebook cells that the tests compare strictly, and the share they do not.

nbval runs every cell. It compares all the text a cell prints, unless a tag says
otherwise or the committed cell was never run. The pixels of a figure are not compared.
The tests refuse more than a tenth of the cells left out.
"""

from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 0.10
LOOSE_TAGS = {"nbval-ignore-output", "nbval-skip", "raises-exception"}
LOOSE_COMMENTS = ("#nbval_ignore_output", "#nbval_skip", "#pytest.skip")


def is_code(cell) -> bool:
    """Whether a cell has code in it: more than comments and directives."""
    lines = (line.strip() for line in cell.source.splitlines())
    return cell.cell_type == "code" and any(x and not x.startswith("#") for x in lines)


def is_compared(cell) -> bool:
    """Whether nbval compares what the cell prints."""
    comments = cell.source.lower().replace(" ", "")
    return (
        cell.execution_count is not None
        and not LOOSE_TAGS & set(cell.metadata.get("tags", []))
        and not any(comment in comments for comment in LOOSE_COMMENTS)
    )


def count(paths: list[Path]) -> tuple[int, int, list[str]]:
    """How many cells, how many of the compared print something, which are left out."""
    total, printing, loose = 0, 0, []
    for path in paths:
        for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if not is_code(cell):
                continue
            total += 1
            if not is_compared(cell):
                loose.append(f"notebooks/{path.name}, cell {number}")
            elif cell.outputs:
                printing += 1
    return total, printing, loose


def report() -> list[str]:
    """The count over all notebooks, in words."""
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    total, printing, loose = count(paths)
    share = len(loose) / total if total else 0.0
    return [
        f"{len(paths)} notebooks, {total} code cells",
        f"compared strictly: {total - len(loose)} ({printing} of them print something)",
        f"not compared: {len(loose)} ({share:.1%}, at most {LIMIT:.0%})",
        *(f"    {name}" for name in loose),
    ]


if __name__ == "__main__":
    print(*report(), sep="\n")
