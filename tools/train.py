"""Runs a whole recipe: `python tools/train.py --config retina_electrum.yaml`."""

import sys

from detmtl.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
