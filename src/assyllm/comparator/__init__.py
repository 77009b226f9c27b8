"""Compatibility of blocks: CKA of their states, COR of their activation distributions."""
