"""Let tools that still ask for a setup.py find setup.cfg."""

from setuptools import setup

setup()
