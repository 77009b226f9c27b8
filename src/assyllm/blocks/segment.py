"""Where a model is cut: edge blocks larger, middle blocks smaller (paper section 4.1)."""

from __future__ import annotations

from assyllm.artifacts import ArtifactError
from assyllm.params import Blocks


def segments(layers: int, blocks: Blocks) -> list[int]:
    """Layers of each block of a model, first to last.

    With the paper's values (edge blocks twice the middle ones; six blocks from 24 layers on, else four):
    32 -> 8,4,4,4,4,8; 24 -> 6,3,3,3,3,6; 12 -> 4,2,2,4; 4 -> 1,1,1,1; 3 -> 1,1,1.

    Raises:
        ArtifactError: fewer than two layers; a block is start or end, never both.
    """
    if layers < 2:
        raise ArtifactError(f"a model of {layers} layer(s) cannot be cut into blocks; two are needed")
    count = blocks.blocks_per_model or (6 if layers >= 24 else 4)
    count = min(count, layers)
    middle = max(1, round(layers / (2 * blocks.edge_to_middle + count - 2)))
    while count > 2 and middle > 1 and layers - middle * (count - 2) < 2 * middle:
        middle -= 1  # an edge block is never smaller than a middle one
    edges = layers - middle * (count - 2)
    return [edges // 2, *[middle] * (count - 2), edges - edges // 2]
