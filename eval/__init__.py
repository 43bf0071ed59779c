"""Benchmark dense features side by side."""
