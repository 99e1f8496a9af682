# Written in notebooks/appendix_command_line.ipynb; edit it there.
"""`python -m annotated_transformer` is the command `annotated-transformer`."""

import sys

import annotated_transformer.cli

if __package__:  # set by `python -m`, and not in a notebook
    sys.exit(annotated_transformer.cli.main())
