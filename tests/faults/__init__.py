"""Faults: what is killed, has no room or has company, and must come out the same.

`python -m tests.faults` runs everything and writes tables for the book's page for maintainers;
`tests/workflow/test_faults.py` runs a little of it. `stages` holds the pieces of work, `processes` starts and
kills them, `kills`, `disks`, `pairs` and `grids` are the four kinds of trial.
"""
