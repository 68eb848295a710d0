"""Many tensors at once: blocks, shards, flat buffers, batches of any nesting, random numbers.

Here live tools on tensors that belong to no equation. No Lightning, and nothing that knows what a synapse is.
"""
