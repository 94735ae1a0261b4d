"""Takes back corrected labels: `python tools/import_labels.py --sent A.json --back B.json --out C.json`."""

import sys

from detmtl.cli import main

if __name__ == "__main__":
    sys.exit(main(["import", *sys.argv[1:]]))
