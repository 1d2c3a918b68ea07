"""The Triton kernels: parity under the interpreter, and compilation ahead of time within a budget."""
