"""Search space, block latencies, thinning and exact search: the arithmetic of HeatNAS."""
