"""The published algorithms, written as plainly as they are described: what the package's ops are measured against.

tests/core/test_published_algorithms.py holds each to the same results as the op, forward and, where the op has one,
backward.
"""
