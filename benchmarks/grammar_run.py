"""Repeat the run on the embedded corpus for three seeds; write the record §5.2 shows.

    python benchmarks/grammar_run.py

runs the code of notebooks/5_2_a_run_on_the_embedded_corpus.ipynb, cell by cell, up to
the cell that sums up the run in `result`, once for each seed: what is recorded is what
the page does, and nothing else is. Two to three minutes a seed on two idle cores.
Writes book/records/grammar_run.json (--record).
"""

import argparse
import os
import platform
import re
import sys
from pathlib import Path

import nbformat
import torch
from recording import ROOT, run_all, write_record

PAGE = ROOT / "notebooks" / "5_2_a_run_on_the_embedded_corpus.ipynb"
SEEDS = (0, 1, 2)


def run(seed: int) -> dict:
    """What the page's cells leave in `result` where they are given this seed."""
    namespace: dict = {}
    replaced = 0
    for cell in nbformat.read(PAGE, as_version=4).cells:
        if cell.cell_type == "code" and "%pip" not in cell.source:
            source, n = re.subn(
                r"^seed = \d+", f"seed = {seed}", cell.source, flags=re.M
            )
            replaced += n
            exec(compile(source, f"cell {cell.id}", "exec"), namespace)
            if "result" in namespace:
                break
    else:
        sys.exit(f"{PAGE.name} has no cell that leaves a result")
    if replaced != 1:
        sys.exit(f"{PAGE.name} sets its seed {replaced} times: it must be once")
    result = namespace["result"]
    del result["seed"]  # it is the case
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--record", type=Path, default=ROOT / "book" / "records" / "grammar_run.json"
    )
    record = parser.parse_args().record.resolve()
    os.environ["MPLBACKEND"] = "agg"
    os.chdir(PAGE.parent)  # where the page's cells expect to be
    runs = run_all([{"seed": seed} for seed in SEEDS], run, record)
    device = f"{os.cpu_count()} CPU cores, {platform.machine()}"
    contents = {"device": device, "threads": torch.get_num_threads(), "runs": runs}
    write_record(record, "python benchmarks/grammar_run.py", contents)


if __name__ == "__main__":
    main()
