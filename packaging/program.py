"""The script that the bundled program runs."""

import sys

from sse_broker.desktop import main

sys.exit(main())
