"""Allocates memory of the first NVIDIA GPU, like an unrelated process: `python holder.py MIB`.

Prints a line once the memory is allocated, and exits when stdin is closed.
"""

from __future__ import annotations

import ctypes
import sys


def main() -> None:
    """Allocate the memory with the driver's library, which every driver installs."""
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context, address = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    size = ctypes.c_size_t(int(sys.argv[1]) << 20)
    for failed in (
        cuda.cuInit(0),
        cuda.cuDeviceGet(ctypes.byref(device), 0),
        cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device),
        cuda.cuMemAlloc_v2(ctypes.byref(address), size),
    ):
        if failed:
            sys.exit(f"CUDA error {failed}")
    print("allocated", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
