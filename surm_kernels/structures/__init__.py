"""One small class a structure: parameter shapes, initialisation, counts, product, dense matrix, nearest projection."""

from surm_kernels.structures.base import Structure
from surm_kernels.structures.block_circulant import BlockCirculant
from surm_kernels.structures.circulant import Circulant
from surm_kernels.structures.circulant_product import CirculantProduct
from surm_kernels.structures.skew_circulant import SkewCirculant

__all__ = ["BlockCirculant", "Circulant", "CirculantProduct", "SkewCirculant", "Structure"]
