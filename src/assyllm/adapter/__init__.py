"""Elastic adapters: what joins blocks of unlike width and semantics."""
