"""Reading devices: NVML, and the host itself."""
