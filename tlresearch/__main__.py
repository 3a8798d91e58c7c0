"""``python -m tlresearch`` is the command line."""

import sys

from tlresearch.cli import main

sys.exit(main())
