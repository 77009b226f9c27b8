"""Splitting pre-trained models into blocks, and the pool of blocks on disk."""
