"""`python -m detmtl VERB ...`."""

import sys

from detmtl.cli import main

sys.exit(main())
