"""One small class a structure: parameter shapes, initialisation, counts, product, dense matrix, nearest projection.

W is out_features x in_features, and every constructor takes (in_features, out_features) before its own options. They
raise a TypeError for a size that is no int and a ValueError for one that is not positive or does not divide as it
should; `nearest` raises a NotImplementedError where no projection is known. docs/structures.md has a table of all.
"""

from surm_kernels.structures.base import Structure
from surm_kernels.structures.block_circulant import BlockCirculant
from surm_kernels.structures.cauchy_like import CauchyLike
from surm_kernels.structures.circulant import Circulant
from surm_kernels.structures.circulant_diagonal import CirculantDiagonal
from surm_kernels.structures.circulant_product import CirculantProduct
from surm_kernels.structures.hankel import Hankel
from surm_kernels.structures.hankel_like import HankelLike
from surm_kernels.structures.hydra import Hydra
from surm_kernels.structures.kronecker import Kronecker
from surm_kernels.structures.low_rank import LowRank
from surm_kernels.structures.monarch import Monarch
from surm_kernels.structures.siva import Siva
from surm_kernels.structures.skew_circulant import SkewCirculant
from surm_kernels.structures.sum import Sum
from surm_kernels.structures.symmetric_toeplitz import SymmetricToeplitz
from surm_kernels.structures.toeplitz import Toeplitz
from surm_kernels.structures.toeplitz_like import ToeplitzLike
from surm_kernels.structures.toeplitz_product import ToeplitzProduct
from surm_kernels.structures.vandermonde import Vandermonde
from surm_kernels.structures.vandermonde_like import VandermondeLike

__all__ = [
    "BlockCirculant",
    "CauchyLike",
    "Circulant",
    "CirculantDiagonal",
    "CirculantProduct",
    "Hankel",
    "HankelLike",
    "Hydra",
    "Kronecker",
    "LowRank",
    "Monarch",
    "Siva",
    "SkewCirculant",
    "Structure",
    "Sum",
    "SymmetricToeplitz",
    "Toeplitz",
    "ToeplitzLike",
    "ToeplitzProduct",
    "Vandermonde",
    "VandermondeLike",
]
