"""Time as the outside reads it. Pure."""

import time


def local_text(seconds: float) -> str:
    """Return Unix `seconds` as local time, `2024-09-12 09:57:59`; empty text for 0."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


def local_now() -> str:
    """Return the present time in the same form."""
    return local_text(time.time())
