"""The command line: `detmtl VERB ...`, and the same from `python tools/VERB.py ...`.

Exit status: 0 done; 1 the run failed; 2 what the user gave is wrong, told in a sentence each.
"""

import sys
from collections.abc import Sequence

from detmtl.verbs.parser import build_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit status."""
    args = build_parser().parse_args(arguments)
    # It takes seconds to import torch and what stands on it: nobody waits for them who asks for --help, or
    # has misspelt an option.
    from detmtl.verbs.perform import perform

    return perform(args)


if __name__ == "__main__":
    sys.exit(main())
