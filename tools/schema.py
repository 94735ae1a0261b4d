"""Writes the JSON schema of the settings: `python tools/schema.py --out settings.schema.json`."""

import sys

from detmtl.cli import main

if __name__ == "__main__":
    sys.exit(main(["schema", *sys.argv[1:]]))
