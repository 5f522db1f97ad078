"""A double click on the bundled program for Windows, where there is no shell to give arguments or to show an error: a
configuration to edit appears beside the program, the demo page opens, and the window stays open over an error. Whatever
else the bundled program is asked for goes to the command line unchanged; knows nothing of what a server does.
"""

import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from sse_broker import cli
from sse_broker.config import BUNDLE_FILE_NAME
from sse_broker.example_config import example_config
from sse_broker.windows_console import owns_console

NO_BROWSER = "--no-browser"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bundled program and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not _is_double_click(arguments):
        return cli.main(arguments)
    _write_config(Path(sys.executable).with_name(BUNDLE_FILE_NAME))
    code = cli.main([], on_ready=_announce if NO_BROWSER in arguments else _open_demo)
    if code and owns_console():
        input("\nPress Enter to close this window.")
    return code


def _is_double_click(arguments: Sequence[str]) -> bool:
    """Whether it was started as a double click, or a shortcut with the one switch, starts it."""
    return sys.platform == "win32" and getattr(sys, "frozen", False) and set(arguments) <= {NO_BROWSER}


def _write_config(path: Path) -> None:
    """Write the configuration unless one is there; an unwritable folder is no reason not to run."""
    try:
        # Line ends of the system, for its editors; "x" so that a file which appears meanwhile is never overwritten.
        with path.open("x", encoding="utf-8") as file:
            file.write(example_config())
    except FileExistsError:
        return
    except OSError as error:
        print(f"The defaults are used; {path} can not be written: {error.strerror}")
    else:
        print(f"The defaults are used; change them in {path}")


def _announce(url: str) -> None:
    print(f"To stop, press Ctrl-C or close this window. Demo: {url}/demo", flush=True)


def _open_demo(url: str) -> None:
    _announce(url)
    webbrowser.open(f"{url}/demo")
