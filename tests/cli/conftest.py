"""What the tests of the commands share."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from unittest import mock

import pytest
from typer.main import get_command


@pytest.fixture(autouse=True, scope="session")
def one_command_line() -> Iterator[None]:
    """Read the commands and their hundred options once; `CliRunner` does so at each call."""
    with mock.patch("typer.testing._get_command", functools.cache(get_command)):
        yield
