"""The script that completes arguments, as a shell uses it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Ask for the words that may stand where the line ends.
ASK = """
source {script}
COMP_WORDS=({words})
COMP_CWORD=$(({count} - 1))
COMP_LINE="${{COMP_WORDS[*]}}"
COMP_POINT=${{#COMP_LINE}}
$(complete -p sse-broker | sed 's/.*-F \\([^ ]*\\).*/\\1/') sse-broker "${{COMP_WORDS[$COMP_CWORD]}}" ""
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    command = [sys.executable, "-m", "sse_broker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script for bash."""
    path = tmp_path_factory.mktemp("completion") / "sse-broker"
    result = program("completion", "bash")
    assert result.returncode == 0, result.stderr
    path.write_text(result.stdout)
    return path


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (["se"], {"send"}),
        (["config", "s"], {"show"}),
        (["send", "--u"], {"--uid", "--url"}),
        (["--po"], {"--port"}),
        (["check", "--conf"], {"--config"}),
    ],
)
def test_bash_completes_commands_and_options(script: Path, line: list[str], wanted: set[str]) -> None:
    words = " ".join(f"'{word}'" for word in ["sse-broker", *line])
    text = ASK.format(script=script, words=words, count=len(line) + 1)
    result = subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=30, check=False)
    assert set(result.stdout.split()) == wanted, result.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_one_with_every_command(shell: str) -> None:
    text = program("completion", shell).stdout
    assert all(name in text for name in ("token", "send", "listen", "info", "kick", "check", "config"))


def test_a_shell_that_nobody_knows_is_one_line() -> None:
    result = program("completion", "csh2")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("sse-broker: there is no completion for 'csh2'; there is for bash, ")
    assert result.stderr.count("\n") == 1
