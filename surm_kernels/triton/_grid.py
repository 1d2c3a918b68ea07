"""Which tile of a result a program computes."""

import triton
import triton.language as tl


@triton.jit
def tile_of_program(token_tiles, column_tiles):
    """The group, the tile of tokens and the tile of columns of this program.

    Eight tiles of tokens meet all columns before the next eight do, so that both factors are found in the L2 cache.
    """
    program = tl.program_id(0)
    group, place = program // (token_tiles * column_tiles), program % (token_tiles * column_tiles)
    first = place // (8 * column_tiles) * 8
    height = tl.minimum(token_tiles - first, 8)
    place %= 8 * column_tiles
    return group.to(tl.int64), first + place % height, place // height
