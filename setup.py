"""Metadata lives in pyproject.toml; here is what a build does."""

from setuptools import find_packages, setup

setup(packages=find_packages(include=["invfast", "invfast.*"]))
