"""Turns a silver store into a COCO file: `python tools/select_labels.py --store STORE --out SILVER.json`."""

import sys

from detmtl.cli import main

if __name__ == "__main__":
    sys.exit(main(["select", *sys.argv[1:]]))
