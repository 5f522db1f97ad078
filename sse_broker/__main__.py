"""Make `python -m sse_broker` the program."""

import sys

from .cli import main

sys.exit(main())
