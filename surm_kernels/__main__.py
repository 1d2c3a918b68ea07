"""`python -m surm_kernels`: the command `surm-kernels`."""

import sys

from surm_kernels.command.main import main

if __name__ == "__main__":
    sys.exit(main())
