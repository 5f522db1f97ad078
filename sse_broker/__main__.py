"""Make `python -m sse_broker` the program."""

import sys

from sse_broker.cli import main

sys.exit(main())
