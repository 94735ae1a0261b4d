"""Writes a deployable file: `python tools/export.py --checkpoint F --format torchscript --out F`."""

import sys

from detmtl.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
