"""Stress: nodes as processes, clients of every door, one fault after the other, nothing lost.

`python -m stress` (`make stress`) runs every fault; `tests/test_stress.py` runs a short form.
"""
