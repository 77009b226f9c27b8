"""Benchmarks behind ``assyllm bench NAME``: each is one interleaved run whose ratios are taken pair by pair."""
