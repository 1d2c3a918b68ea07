"""Layers with Toeplitz and Hankel weights."""

from surm_kernels.nn._constructors import BlockLinear, PlainLinear
from surm_kernels.structures import Hankel, SymmetricToeplitz, Toeplitz


class ToeplitzLinear(BlockLinear):
    """A linear layer whose weight is Toeplitz: in_features + out_features - 1 parameters.

    `block_size` asks for a grid of square Toeplitz blocks instead and must divide both sizes.
    """

    weight_structure = Toeplitz


class SymmetricToeplitzLinear(PlainLinear):
    """A linear layer whose weight is symmetric Toeplitz: max(in_features, out_features) parameters.

    A rectangular weight is the top left part of the square one.
    """

    weight_structure = SymmetricToeplitz


class HankelLinear(BlockLinear):
    """A linear layer whose weight is Hankel; sizes and blocks as in ToeplitzLinear."""

    weight_structure = Hankel
