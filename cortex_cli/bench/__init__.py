"""`cortex bench`: latency and throughput as users of a gateway experience them."""
