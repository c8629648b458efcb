"""`python -m xensock`: the command."""

import sys

from xensock.cli.main import main

sys.exit(main())
