"""Run notebooks in place and keep what they print.

Without arguments, all of them. A notebook is written only if every cell ran. Cell ids
stay, and what a run leaves behind that says nothing (timings, widget state) is dropped,
so that a diff shows what changed.
"""

import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK_METADATA = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}
CELL_METADATA = {"tags", "mystnb"}


def clean(notebook: nbformat.NotebookNode) -> None:
    """Keeps of the metadata what the book, the tests or an author put there."""
    notebook.metadata = nbformat.from_dict(NOTEBOOK_METADATA)
    for cell in notebook.cells:
        for key in set(cell.metadata) - CELL_METADATA:
            del cell.metadata[key]
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})


def execute(path: Path, timeout: int) -> None:
    """Runs one notebook in its own folder and writes it back."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute()
    clean(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--timeout", type=int, default=900, help="seconds for one cell")
    arguments = parser.parse_args()
    failed = 0
    for path in arguments.notebooks or sorted((ROOT / "notebooks").glob("*.ipynb")):
        if not path.is_file():
            print(f"execute: no notebook at {path}", file=sys.stderr)
            return 1
        start = time.perf_counter()
        try:
            execute(path, arguments.timeout)
        except (CellExecutionError, CellTimeoutError) as error:
            failed += 1
            print(f"execute: {path.name} is left as it was\n{error}", file=sys.stderr)
        else:
            print(f"{time.perf_counter() - start:6.1f} s  {path.name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
