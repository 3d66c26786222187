"""The version of the installed package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("crossband")
except PackageNotFoundError:
    # Run from a copy that is not installed.
    __version__ = "0"
