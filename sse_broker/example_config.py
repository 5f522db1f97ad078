"""The commented configuration with every key and its default, as it travels with the program. Knows where it is, not what."""

from pathlib import Path


def example_config() -> str:
    """Return the text: out of the package, or from beside it in a checkout."""
    package = Path(__file__).resolve().parent
    folders = (package / "etc", package.parent / "etc")
    return next(folder for folder in folders if folder.is_dir()).joinpath("config.toml").read_text("utf-8")
