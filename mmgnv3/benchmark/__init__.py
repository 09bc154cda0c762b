"""Measuring the network beside its peers: what ``tools/benchmark.py`` is made of."""
