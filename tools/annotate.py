"""Writes or continues a silver store: `python tools/annotate.py --teacher SPEC --images DIR --out STORE`."""

import sys

from detmtl.cli import main

if __name__ == "__main__":
    sys.exit(main(["annotate", *sys.argv[1:]]))
