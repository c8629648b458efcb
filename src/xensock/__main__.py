"""`python -m xensock`: the command; where nothing but Python is installed, the part of it that guests need."""

import sys

try:
    from xensock.cli.main import main
except ModuleNotFoundError as missing:
    if missing.name != "click":
        raise
    from xensock.cli.bare import main

sys.exit(main())
