"""How many files this process may open, and so how many streams it may hold. Pure but for asking the system."""

import sys

# Windows has no limit to set; a process may have this many handles.
WINDOWS_HANDLES = 1 << 24


def file_limit() -> int:
    """Return how many files this process may open."""
    if sys.platform == "win32":
        return WINDOWS_HANDLES
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
