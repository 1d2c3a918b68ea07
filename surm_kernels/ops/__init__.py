"""The private operators `torch.ops.surm_kernels`, made differentiable: one file a primitive.

Each operator is a schema with a compiled CPU kernel or the reference behind it and a fake for tracing. The multilinear
form it belongs to makes it differentiable. The functions here take tensors of one dtype on one device, in the shapes of
docs/architecture.md.
"""
