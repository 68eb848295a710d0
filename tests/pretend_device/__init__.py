"""A second device without a GPU, and the tests that need one.

It refuses tensors of two devices as CUDA does, counts how often the host waits, fills pinned memory that is
read too early with NaN, and finds memory that two streams use without waiting for each other.
"""
