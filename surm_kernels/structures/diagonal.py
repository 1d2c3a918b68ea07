"""What Toeplitz and Hankel matrices share: one value a diagonal or antidiagonal, whole or in blocks."""

from torch import Tensor

from surm_kernels import dense, functional
from surm_kernels.ops import toeplitz as _ops
from surm_kernels.structures.base import TiedEntries, check_tokens, require_blocks, tied_means, transform_work
from surm_kernels.structures.primitive import Primitive, PrimitiveStructure


class DiagonalStructure(TiedEntries, PrimitiveStructure):
    """The matrix with one value a diagonal, an antidiagonal if `reflected`: out_features + in_features - 1 values.

    Rectangular by nature. With `block_size` b the parameter is (out_features / b, in_features / b, 2 b - 1), the
    diagonals of square blocks.
    """

    reflected: bool
    parameter: str

    def __init__(self, in_features: int, out_features: int, block_size: int | None = None) -> None:
        super().__init__(in_features, out_features)
        require_blocks(block_size, in_features, out_features)
        self.block_size = block_size

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        block = self.block_size
        if block is None:
            return {self.parameter: (self.out_features + self.in_features - 1,)}
        return {self.parameter: (self.out_features // block, self.in_features // block, 2 * block - 1)}

    def linear(self, x: Tensor, *parameters: Tensor, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
        (t,) = parameters
        check_tokens(x, self.in_features)
        product = functional.hankel_linear if self.reflected else functional.toeplitz_linear
        return product(x, t, base=base, scale=scale)

    def primitive(self, *parameters: Tensor, scale: float) -> Primitive:
        (t,) = parameters
        blocks = t.view(1, 1, 1, -1) if self.block_size is None else t.unsqueeze(0)
        return Primitive(_ops.form, (blocks,), (self.block_size or self.in_features, scale, self.reflected))

    def token_work(self) -> float:
        block = self.block_size
        if block is None:
            return 2 * transform_work(self.in_features + self.out_features)
        return (self.in_features + self.out_features) // block * transform_work(2 * block) + self.count()

    def dense(self, *parameters: Tensor) -> Tensor:
        (t,) = parameters
        matrix = dense.hankel if self.reflected else dense.toeplitz
        return matrix(t, self.block_size or self.in_features)

    def nearest(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The mean over each diagonal, antidiagonal if reflected."""
        self._check_weight(weight)
        (shape,) = self.parameter_shapes().values()
        return (tied_means(self.dense, shape, weight),)

    def extra_repr(self) -> str:
        blocks = "" if self.block_size is None else f", block_size={self.block_size}"
        return super().extra_repr() + blocks
