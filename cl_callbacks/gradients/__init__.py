"""Per-sample gradients of any network, and what is summed from them; usable on its own.

Here lives how a network's gradients are told apart by sample. What they are measured for (Fisher information,
sensitivity, curvature) is in ``functional``.
"""
