"""Draws and writes detections: `python tools/predict.py --model F --source FILE_OR_DIR --out DIR`."""

import sys

from detmtl.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
