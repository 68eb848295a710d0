"""Checks at the edges: arguments, optional packages, saved state, Ctrl-C.

Here lives what refuses or protects, for any room. Nothing here knows tensors of a network or a Trainer.
"""
