"""Packaging; all metadata is in pyproject.toml."""

import setuptools

setuptools.setup()
