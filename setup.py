"""Everything stands in pyproject.toml; the C++ extension of the training path will be declared here."""

from setuptools import setup

setup()
