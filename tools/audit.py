"""Measures silver against gold.

`python tools/audit.py --store STORE --annotations GOLD.json --images DIR`
"""

import sys

from detmtl.cli import main

if __name__ == "__main__":
    sys.exit(main(["audit", *sys.argv[1:]]))
