"""Sizes of what travels between a client and the server, by its shape alone: what runs log and what is priced agree."""

NUMBER, ID = 4, 2  # of a number (float32) and of a block's id


def linear_sums(arriving: int, leaving: int) -> int:
    """One client's sums for a linear adapter: the upper triangle of X'X, X'Y, both column sums, Y'Y's trace and n."""
    return arriving_sums(arriving) + NUMBER * (arriving * leaving + leaving + 1)


def arriving_sums(arriving: int) -> int:
    """Of these, what does not depend on where the states go: the upper triangle of X'X, X's column sums and n."""
    return NUMBER * (_triangle(arriving) + arriving + 1)


def head_sums(features: int) -> int:
    """One client's sums for a ridge head: the upper triangle of X'X, X'y, and three counts."""
    return NUMBER * (_triangle(features) + features + 3)


def block_features(width: int, sketch_dims: int | None) -> int:
    """Features of one block that a head reads: pooled states of 2 x width, or what is left of them in a sketch."""
    return min(2 * width, sketch_dims or 2 * width)


def _triangle(size: int) -> int:
    return size * (size + 1) // 2
