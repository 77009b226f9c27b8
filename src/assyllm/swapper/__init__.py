"""Block Swapper: a pool or a model that does not fit in memory, run under a byte budget (paper section 3.5)."""
