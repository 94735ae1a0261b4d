"""Prints the COCO numbers: `python tools/evaluate.py --checkpoint F --annotations GOLD.json --images DIR`."""

import sys

from detmtl.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
