"""The broker's program with one thing more: at SIGUSR2 it writes how many tasks and objects it holds to the file named by
COUNTS_FILE. For the soak, which can not see into another process.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from pathlib import Path

from sse_broker.cli import main


def write_counts(*_: object) -> None:
    """Write the counts, whole or not at all."""
    gc.collect()
    try:
        tasks = len(asyncio.all_tasks())
    except RuntimeError:  # between two runs of the loop
        return
    place = Path(os.environ["COUNTS_FILE"])
    draft = place.with_suffix(".draft")
    draft.write_text(json.dumps({"tasks": tasks, "objects": len(gc.get_objects()) + gc.get_freeze_count()}))
    draft.replace(place)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, write_counts)
    sys.exit(main())
