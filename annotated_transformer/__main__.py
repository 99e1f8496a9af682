"""`python -m annotated_transformer` is the command `annotated-transformer`."""

import sys

from .cli import main

if __package__:  # set by `python -m`, and not in a notebook
    sys.exit(main())
