"""The package srum_jax; pyproject.toml says everything about it."""

from setuptools import setup

setup()
