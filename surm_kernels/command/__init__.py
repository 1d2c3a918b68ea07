"""The jobs behind the subcommands of `surm-kernels`."""
