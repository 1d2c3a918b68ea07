"""Tests of surm_kernels; run them with `make test`."""
