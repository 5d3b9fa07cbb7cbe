"""``python -m fatnn_rs``: the command line."""

import sys

from fatnn_rs.cli import main

if __name__ == "__main__":
    sys.exit(main())
