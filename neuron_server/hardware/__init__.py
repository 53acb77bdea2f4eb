"""Device inventory and readings, from NVML and from the host itself."""
