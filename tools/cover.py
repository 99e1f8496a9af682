"""Copy Figure 1, as section 3 draws it, to where README and front page show it.

    python tools/cover.py [--check]

The picture is the output of a cell of notebooks/3_model_architecture.ipynb. With
--check nothing is written: the exit status is 1 where the copy is not that output.
"""

import argparse
import base64
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "3_model_architecture.ipynb"
COVER = ROOT / "book" / "_static" / "architecture.png"


def first_picture(path: Path) -> bytes:
    """The first picture among a notebook's outputs, as PNG."""
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                return base64.b64decode(output["data"]["image/png"])
    raise SystemExit(f"{path} has no picture among its outputs")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    picture = first_picture(NOTEBOOK)
    if not parser.parse_args().check:
        COVER.write_bytes(picture)
        return 0
    if COVER.exists() and COVER.read_bytes() == picture:
        return 0
    print(f"{COVER.relative_to(ROOT)} is not Figure 1: run python tools/cover.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
