"""Holds memory of the first NVIDIA GPU, as a program of somebody else's would: `python holder.py MIB`.

Prints a line once it has it, and lets go when its input ends.
"""

from __future__ import annotations

import ctypes
import sys


def main() -> None:
    """Through the driver's own library, which is wherever a driver is."""
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
    print("managed", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
