"""The version of this program: one place, read by setup.cfg, the command line and `/info`."""

VERSION = "1.0.0"
