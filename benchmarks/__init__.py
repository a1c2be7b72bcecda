"""Benchmarks: entries time the package against the plain way of doing the same, and assert that it is so.

    python -m benchmarks                      # everything, minutes; use a machine that does nothing else
    python -m benchmarks --only scoring start # some entries; what is on record of the others stays
    python -m benchmarks --quick --out /tmp/x # tiny sizes: whether it works, not how fast it is

Two ways are measured alternately in one process, so that what slows the machine slows both; what counts is
the ratio of neighbours. Notebook 10 shows what is on record in `data/results/benchmarks`. `benchmarks.gpu` is
a script of its own, for a machine with a GPU.
"""
