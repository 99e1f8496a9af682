# Written in notebooks/appendix_command_line.ipynb; edit it there.
"""`python -m annotated_transformer` is the command `annotated-transformer`."""

import os
import sys

import annotated_transformer.cli

if __package__:  # set by `python -m`, and not in a notebook
    code = annotated_transformer.cli.main()
    if "WORLD_SIZE" not in os.environ:
        sys.exit(code)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(code)
