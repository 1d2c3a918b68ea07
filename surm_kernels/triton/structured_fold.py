"""The gradients of parameters: tiles of D = g^T x, the gradient of W, folded onto theta without ever being stored.

A program adds up a tile of D over a fixed number of tokens and folds it: along diagonals for circulant, Toeplitz and
Hankel matrices, by sums of its rows and columns for Vandermonde and Cauchy-like ones. A second kernel adds the parts of
all programs in a fixed order. The tiles, and so the order of every sum, depend on shapes and types alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from surm_kernels.triton import _tuning
from surm_kernels.triton._sums import summed
from surm_kernels.triton.tiles import Matrix, difference, left_generator, power, right_generator, weight

MANY_PROGRAMS = 512  # that keep any GPU busy
TOKENS_OF_PROGRAM = (1024, 512, 256, 128)  # the first of these that makes many programs, or the last
SUM_BLOCK = 64  # rows and columns of a tile that is summed along both
WARPS = {16: 1, 32: 2, 64: 8, 128: 8}  # by the rows and columns of a tile


@triton.jit
def add_tile(
    total,
    g,
    x,
    scale,
    row,
    rows,
    column,
    columns,
    first_token,
    last_token,
    g_token,
    x_token,
    WIDE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    """total plus g[:, row].T @ x[:, column] over the tokens from first to last; zeros stand outside of g and x.

    Where WIDE it is computed in float32 and times scale, else exactly from 16-bit values and not times scale.
    """
    is_row, is_column = (row < rows)[None, :], ((column >= 0) & (column < columns))[None, :]
    for first in range(first_token, last_token, BLOCK_TOKENS):
        token = first + tl.arange(0, BLOCK_TOKENS)
        is_token = (token < last_token)[:, None]
        token = token.to(tl.int64)[:, None]
        left = tl.load(g + token * g_token + row[None, :], mask=is_token & is_row, other=0.0)
        right = tl.load(x + token * x_token + column[None, :], mask=is_token & is_column, other=0.0)
        if WIDE:
            # The sum of a few tokens apart: one chain of additions along all of them would lose digits.
            total += scale * tl.dot(tl.trans(left.to(tl.float32)), right.to(tl.float32), input_precision="ieee")
        else:
            total = tl.dot(tl.trans(left), right, total)
    return total


@triton.jit(do_not_specialize=["shape_class"])
def fold_kernel(
    g,
    x,
    parts,
    scale,
    tokens,
    tokens_of_program,
    rows,
    columns,
    out_blocks,
    in_blocks,
    length,
    bands,
    bands_above,
    g_group,
    g_token,
    x_group,
    x_token,
    shape_class,
    KIND: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    """What one band of diagonals of one block of W gets from the tokens of this program.

    D[i, j] belongs to the diagonal i - j, in a band that differs from a multiple of BLOCK by less than BLOCK. All tiles
    of a band fold alike, so they are added first. x goes on to the left of a circulant block with its own end, times f;
    a Hankel block is a Toeplitz block that meets x in reverse.

    parts is (G, programs along the tokens, 2, M, K, length): diagonals from the middle of their band on in the first
    half, those before in the second, so that each place is written once.
    """
    CIRCULANT: tl.constexpr = (KIND == "circulant") or (KIND == "skew_circulant")
    program = tl.program_id(0)
    band, program = program % bands - bands_above, program // bands
    block, program = program % (out_blocks * in_blocks), program // (out_blocks * in_blocks)
    token_programs = tl.cdiv(tokens, tokens_of_program)
    part, first_token = program.to(tl.int64), program % token_programs * tokens_of_program
    last_token = tl.minimum(first_token + tokens_of_program, tokens)
    group = (program // token_programs).to(tl.int64)
    g += group * g_group + block // in_blocks * rows
    x += group * x_group + block % in_blocks * columns

    place = tl.arange(0, BLOCK)
    row_tiles = tl.cdiv(rows, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    if CIRCULANT:
        for tile in range(0, tl.minimum(band, row_tiles)):
            column = (tile - band) * BLOCK + columns + place
            total = add_tile(
                total,
                g,
                x,
                scale,
                tile * BLOCK + place,
                rows,
                column,
                columns,
                first_token,
                last_token,
                g_token,
                x_token,
                WIDE,
                BLOCK_TOKENS,
            )
        if KIND == "skew_circulant":
            total = -total
    for tile in range(tl.maximum(band, 0), tl.minimum(row_tiles, band + tl.cdiv(columns, BLOCK))):
        column = (tile - band) * BLOCK + place
        if KIND == "hankel":
            column = columns - 1 - column
        total = add_tile(
            total,
            g,
            x,
            scale,
            tile * BLOCK + place,
            rows,
            column,
            columns,
            first_token,
            last_token,
            g_token,
            x_token,
            WIDE,
            BLOCK_TOKENS,
        )
    if not WIDE:
        total *= scale

    i, diagonal = place[:, None], place[None, :]
    sheared = tl.gather(total, (i - diagonal) & (BLOCK - 1), 1)
    from_middle = tl.sum(tl.where(i >= diagonal, sheared, 0.0), 0)
    before_middle = tl.sum(tl.where(i < diagonal, sheared, 0.0), 0)
    index = band * BLOCK + place
    if not CIRCULANT:
        index += columns - 1
    blocks = out_blocks * in_blocks
    parts += (part * 2 * blocks + block) * length
    tl.store(parts + index, from_middle, mask=(index >= 0) & (index < length))
    index -= BLOCK
    tl.store(parts + blocks * length + index, before_middle, mask=(index >= 0) & (index < length))


@triton.jit(do_not_specialize=["shape_class"])
def vandermonde_fold_kernel(
    g,
    x,
    theta,
    node_parts,
    weight_parts,
    scale,
    tokens,
    tokens_of_program,
    rows,
    columns,
    in_blocks,
    g_token,
    x_token,
    shape_class,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    """What the nodes, and the weights if there are any, of a tile of rows get from one tile of W.

    The derivative of w v^j is j w v^(j - 1) for v and v^j for w. Both parts are (programs along the tokens, tiles of
    columns, K, rows).
    """
    program = tl.program_id(0)
    row_tiles, column_tiles = tl.cdiv(rows, BLOCK), tl.cdiv(columns, BLOCK)
    row_tile, part = program % row_tiles, (program // row_tiles).to(tl.int64)
    block, program = program // row_tiles % in_blocks, program // row_tiles // in_blocks
    first_token = program // column_tiles * tokens_of_program
    last_token = tl.minimum(first_token + tokens_of_program, tokens)
    row = row_tile * BLOCK + tl.arange(0, BLOCK)
    column = program % column_tiles * BLOCK + tl.arange(0, BLOCK)

    gradient = tl.zeros((BLOCK, BLOCK), tl.float32)
    gradient = add_tile(
        gradient,
        g,
        x + block * columns,
        scale,
        row,
        rows,
        column,
        columns,
        first_token,
        last_token,
        g_token,
        x_token,
        WIDE,
        BLOCK_TOKENS,
    )
    if not WIDE:
        gradient *= scale

    # Outside the matrix its last row and column stand in: they meet a gradient of zero, or are not stored.
    i, j = tl.minimum(row, rows - 1), tl.minimum(column, columns - 1)
    lower = power(theta, i[:, None], tl.maximum(j - 1, 0)[None, :], rows, columns)
    of_node = tl.sum(gradient * (j.to(tl.float32)[None, :] * lower), 1)
    if weight_parts is not None:
        of_node *= weight(theta, i, block, rows, columns)
        of_weight = tl.sum(gradient * power(theta, i[:, None], j[None, :], rows, columns), 1)
        tl.store(weight_parts + part * rows + row, of_weight, mask=row < rows)
    tl.store(node_parts + part * rows + row, of_node, mask=row < rows)


@triton.jit(do_not_specialize=["shape_class"])
def cauchy_fold_kernel(
    g,
    x,
    theta,
    row_parts,
    column_parts,
    scale,
    tokens,
    tokens_of_program,
    rows,
    columns,
    rank,
    g_token,
    x_token,
    shape_class,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    """What v, G, u and H get from one tile of W.

    With inner = D / (v - u), G gets inner H^T and H gets G inner; v gets the sums of the rows of -inner * W and u those
    of the columns of inner * W. row_parts is (programs along the tokens, tiles of columns, 1 + r, rows) for v and G,
    column_parts (programs along the tokens, tiles of rows, 1 + r, columns) for u and H.
    """
    program = tl.program_id(0)
    row_tiles, column_tiles = tl.cdiv(rows, BLOCK), tl.cdiv(columns, BLOCK)
    row_tile, program = program % row_tiles, program // row_tiles
    column_tile, token_program = program % column_tiles, (program // column_tiles).to(tl.int64)
    first_token = program // column_tiles * tokens_of_program
    last_token = tl.minimum(first_token + tokens_of_program, tokens)
    row = row_tile * BLOCK + tl.arange(0, BLOCK)
    column = column_tile * BLOCK + tl.arange(0, BLOCK)

    inner = tl.zeros((BLOCK, BLOCK), tl.float32)
    inner = add_tile(
        inner,
        g,
        x,
        scale,
        row,
        rows,
        column,
        columns,
        first_token,
        last_token,
        g_token,
        x_token,
        WIDE,
        BLOCK_TOKENS,
    )
    if not WIDE:
        inner *= scale

    # Outside the matrix its last row and column stand in: they meet a gradient of zero, or are not stored.
    i, j = tl.minimum(row, rows - 1), tl.minimum(column, columns - 1)
    apart = difference(theta, i[:, None], j[None, :], rows)
    inner /= apart
    row_parts += (token_program * column_tiles + column_tile) * (1 + rank) * rows + row
    column_parts += (token_program * row_tiles + row_tile) * (1 + rank) * columns + column
    numerator = tl.zeros((BLOCK, BLOCK), tl.float32)
    for term in range(rank):
        left = left_generator(theta, term, i, rows, columns)
        right = right_generator(theta, term, j, rows, columns, rank)
        numerator += left[:, None] * right[None, :]
        tl.store(row_parts + (1 + term) * rows, tl.sum(inner * right[None, :], 1), mask=row < rows)
        tl.store(column_parts + (1 + term) * columns, tl.sum(inner * left[:, None], 0), mask=column < columns)
    product = inner * (numerator / apart)
    tl.store(row_parts, -tl.sum(product, 1), mask=row < rows)
    tl.store(column_parts, tl.sum(product, 0), mask=column < columns)


def _configs(block: int) -> list[triton.Config]:
    """Only the depth of the pipeline is tuned, which leaves the order of sums alone."""
    depths = (4, 5) if block == max(WARPS) else (4, 3)  # that spill nothing, with Triton 3.6 as with 3.9
    return [triton.Config({}, num_warps=WARPS[block], num_stages=stages) for stages in depths]


fold_kernels = {block: _tuning.tuned(_configs(block), ["shape_class", "KIND", "WIDE"])(fold_kernel) for block in WARPS}
tuned_vandermonde_fold_kernel = _tuning.tuned(_configs(SUM_BLOCK), ["shape_class", "WIDE"])(vandermonde_fold_kernel)
tuned_cauchy_fold_kernel = _tuning.tuned(_configs(SUM_BLOCK), ["shape_class", "WIDE"])(cauchy_fold_kernel)


def fold(
    g: Tensor, x: Tensor, kind: str, rows: int, columns: int, scale: float, dtype: torch.dtype | None = None
) -> Tensor:
    """The gradient of `scale * <g, x @ W.T>` with respect to theta (G, M, K, length), in the type of x unless told.

    g is (G, T, M rows) and x (G, T, K columns). A float32 gradient is computed in float32.
    """
    dtype = x.dtype if dtype is None else dtype
    groups, tokens, _ = x.shape
    out_blocks, in_blocks = g.shape[2] // rows, x.shape[2] // columns
    circulant = kind in ("circulant", "skew_circulant")
    length = rows if circulant else rows + columns - 1
    wide = dtype == torch.float32
    block = min(max(16, triton.next_power_of_2(min(rows, columns))), 64 if wide else 128)
    bands_above = 0 if circulant else triton.cdiv(columns - 1, block)
    bands = bands_above + (rows - 1) // block + 2
    programs = groups * out_blocks * in_blocks * bands
    tokens_of_program = _tokens_of_program(tokens, programs)
    token_programs = triton.cdiv(tokens, tokens_of_program)
    parts = x.new_empty(groups, token_programs, 2, out_blocks, in_blocks, length, dtype=torch.float32)
    g, x = _tuning.with_contiguous_rows(g), _tuning.with_contiguous_rows(x)
    if parts.numel() != 0:
        with _tuning.device_of(x):
            fold_kernels[block][(token_programs * programs,)](
                g,
                x,
                parts,
                scale,
                tokens,
                tokens_of_program,
                rows,
                columns,
                out_blocks,
                in_blocks,
                length,
                bands,
                bands_above,
                g.stride(0),
                g.stride(1),
                x.stride(0),
                x.stride(1),
                _tuning.shape_class(tokens, g.shape[2], x.shape[2], rows, columns),
                KIND=kind,
                WIDE=wide,
                BLOCK=block,
                BLOCK_TOKENS=tokens_at_once(wide),
                enable_fp_fusion=True,
            )
    return summed(parts.flatten(1, 2), 1.0, dtype)


def fold_vandermonde(g: Tensor, x: Tensor, matrix: Matrix, scale: float, dtype: torch.dtype) -> list[Tensor]:
    """The gradients of v (m,) and, for a weighted matrix, of w (K, m); g is (T, m), x is (T, K n)."""
    weighted, wide = matrix.kind == "weighted_vandermonde", dtype == torch.float32
    row_tiles, column_tiles, token_programs, tokens_of_program = _tiles_to_sum(x, matrix, matrix.in_blocks)
    size = (token_programs, column_tiles, matrix.in_blocks, matrix.rows)
    node_parts = x.new_empty(size, dtype=torch.float32)
    weight_parts = torch.empty_like(node_parts) if weighted else None
    g, x = _tuning.with_contiguous_rows(g), _tuning.with_contiguous_rows(x)
    if node_parts.numel() != 0:
        with _tuning.device_of(x):
            tuned_vandermonde_fold_kernel[(row_tiles * matrix.in_blocks * column_tiles * token_programs,)](
                g,
                x,
                matrix.theta,
                node_parts,
                weight_parts,
                scale,
                x.shape[0],
                tokens_of_program,
                matrix.rows,
                matrix.columns,
                matrix.in_blocks,
                g.stride(0),
                x.stride(0),
                _tuning.shape_class(*x.shape, matrix.rows),
                WIDE=wide,
                BLOCK=SUM_BLOCK,
                BLOCK_TOKENS=tokens_at_once(wide),
                enable_fp_fusion=True,
            )
    parts = [node_parts.flatten(0, 2), *([] if weight_parts is None else [weight_parts.flatten(0, 1)])]
    return [summed(part[None], 1.0, dtype)[0] for part in parts]


def fold_cauchy(g: Tensor, x: Tensor, matrix: Matrix, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The gradients of v and G, (1 + r, m), and of u and H, (1 + r, n); g is (T, m), x is (T, n)."""
    rank, wide = matrix.in_blocks, dtype == torch.float32
    row_tiles, column_tiles, token_programs, tokens_of_program = _tiles_to_sum(x, matrix, 1)
    row_parts = x.new_empty(token_programs, column_tiles, 1 + rank, matrix.rows, dtype=torch.float32)
    column_parts = x.new_empty(token_programs, row_tiles, 1 + rank, matrix.columns, dtype=torch.float32)
    g, x = _tuning.with_contiguous_rows(g), _tuning.with_contiguous_rows(x)
    if token_programs != 0:
        with _tuning.device_of(x):
            tuned_cauchy_fold_kernel[(row_tiles * column_tiles * token_programs,)](
                g,
                x,
                matrix.theta,
                row_parts,
                column_parts,
                scale,
                x.shape[0],
                tokens_of_program,
                matrix.rows,
                matrix.columns,
                rank,
                g.stride(0),
                x.stride(0),
                _tuning.shape_class(*x.shape, matrix.rows),
                WIDE=wide,
                BLOCK=SUM_BLOCK,
                BLOCK_TOKENS=tokens_at_once(wide),
                enable_fp_fusion=True,
            )
    of_rows, of_columns = (summed(parts.flatten(0, 1)[None], 1.0, dtype)[0] for parts in (row_parts, column_parts))
    return of_rows, of_columns


def _tiles_to_sum(x: Tensor, matrix: Matrix, blocks: int) -> tuple[int, int, int, int]:
    """How many tiles of rows and of columns there are, and programs along the tokens, with the tokens of each."""
    row_tiles, column_tiles = triton.cdiv(matrix.rows, SUM_BLOCK), triton.cdiv(matrix.columns, SUM_BLOCK)
    tokens_of_program = _tokens_of_program(x.shape[0], row_tiles * column_tiles * blocks)
    return row_tiles, column_tiles, triton.cdiv(x.shape[0], tokens_of_program), tokens_of_program


def tokens_at_once(wide: bool) -> int:
    """How many tokens are multiplied at a time: few in float32, whose operands are all in registers."""
    return 16 if wide else 32


def _tokens_of_program(tokens: int, programs: int) -> int:
    """How many tokens a program adds up, where there are so many programs for each set of tokens."""
    for size in TOKENS_OF_PROGRAM:
        if programs * triton.cdiv(tokens, size) >= MANY_PROGRAMS:
            return size
    return TOKENS_OF_PROGRAM[-1]
