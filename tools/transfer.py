"""Do the tasks of a run help each other? `python tools/transfer.py --config transfer_scenes.yaml`."""

import sys

from detmtl.cli import main

if __name__ == "__main__":
    sys.exit(main(["transfer", *sys.argv[1:]]))
