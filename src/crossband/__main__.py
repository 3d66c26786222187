"""`python -m crossband` is `crossband`."""

from crossband.cli import app

app()
