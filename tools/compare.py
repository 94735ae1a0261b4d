"""Compares arms over paired seeds: `python tools/compare.py --config compare_scenes.yaml`."""

import sys

from detmtl.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
