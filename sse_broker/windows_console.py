"""The console of Windows: being asked to end through it, and whose it is.

Windows has no SIGTERM. A program hears of Ctrl-C, of a window being closed, of logging off and of shutting down through a
handler that the system calls in a thread of its own, and closing ends the process as soon as that handler returns. Knows
no event loop and no broker; every function here is harmless elsewhere and does nothing there.
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

CTRL_C = 0
CTRL_BREAK = 1
CTRL_CLOSE = 2
# Windows ends the process 5 s after the window was closed, whatever the handler does; then it is better to cut off
# clients that did not take their goodbye than to be cut off.
PATIENCE_SECONDS = 3.5
FOREVER_SECONDS = 3600.0


class ConsoleHandler:
    """Calls `on_stop` from another thread for each way of being asked to end; must live as long as it may be called."""

    def __init__(self, on_stop: Callable[[], object]) -> None:
        self._on_stop = on_stop
        self._callback: object = None

    def install(self) -> bool:
        """Take over the console's events; say whether this is a system that has them."""
        if sys.platform != "win32":
            return False
        handler_type = ctypes.WINFUNCTYPE(ctypes.c_int, ctypes.c_uint)
        self._callback = handler_type(self.handle)
        return bool(ctypes.windll.kernel32.SetConsoleCtrlHandler(self._callback, 1))

    def handle(self, event: int) -> int:
        """Obey one event; return 1, which means that no other handler need be asked."""
        self._ask()
        if event in (CTRL_C, CTRL_BREAK):
            return 1
        # Returning would end the process now. It ends by itself when everything is closed.
        time.sleep(PATIENCE_SECONDS)
        self._ask()
        time.sleep(FOREVER_SECONDS)
        return 1

    def _ask(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: the end is near anyway
            self._on_stop()


def owns_console() -> bool:
    """Say whether the console window was opened for this program alone, and so will close with it."""
    if sys.platform != "win32":
        return False
    pids = (ctypes.c_uint * 16)()
    count = ctypes.windll.kernel32.GetConsoleProcessList(pids, len(pids))
    ours = {os.getpid()}
    if _is_one_file():
        ours.add(os.getppid())  # the part that unpacked this one and waits for it
    return 0 < count <= len(pids) and set(pids[:count]) <= ours


def _is_one_file() -> bool:
    unpacked = getattr(sys, "_MEIPASS", None)
    return unpacked is not None and Path(sys.executable).parent not in (Path(unpacked), Path(unpacked).parent)
