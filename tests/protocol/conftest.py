"""Hypothesis profiles of the codec tests: small by default, `HYPOTHESIS_PROFILE=deep` for more."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("quick", max_examples=60, deadline=None, database=None, print_blob=True)
settings.register_profile("deep", max_examples=5_000, deadline=None, database=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
