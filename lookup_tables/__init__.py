"""Measured block latencies in SQL: measurements, immutable table editions, calibration."""
