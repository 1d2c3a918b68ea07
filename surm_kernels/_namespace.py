"""The namespace of the private operators, `torch.ops.<NAMESPACE>`; the build hands it to C++.

A copy of the package under another name that changes this one line loads beside it.
"""

NAMESPACE = "surm_kernels"
#: Of the operators in CUDA C++, with the same schemas.
CUDA_NAMESPACE = f"{NAMESPACE}_cuda"
