"""What is measured: the registry of cases.

A case added to CASES is measured, checked, reported and held to its claims without further code.
"""

from surm_kernels.command.bench.case import Case, MemoryCase
from surm_kernels.command.bench.families import (
    adapted,
    circulant,
    displacement,
    encoders,
    generated,
    hydra,
    kronecker,
    steps,
    toeplitz,
)

CASES: tuple[Case, ...] = (
    *circulant.CASES,
    *toeplitz.CASES,
    *displacement.CASES,
    *kronecker.CASES,
    *generated.CASES,
    *hydra.CASES,
    *adapted.CASES,
    *steps.CASES,
    *encoders.CASES,
)

MEMORY_CASES: tuple[MemoryCase, ...] = (
    *circulant.MEMORY_CASES,
    *displacement.MEMORY_CASES,
    *generated.MEMORY_CASES,
    *adapted.MEMORY_CASES,
)
