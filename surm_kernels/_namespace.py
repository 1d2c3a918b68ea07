"""The namespace of the package's operators, in Python and in C++, whose build reads it here."""

NAMESPACE = "surm_kernels"
