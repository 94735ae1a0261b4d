"""Tells whether a data set is fit for training: `python tools/check.py --annotations F --images DIR`."""

import sys

from detmtl.cli import main

if __name__ == "__main__":
    sys.exit(main(["check", *sys.argv[1:]]))
