"""Unusual batches and unusual parameters, and what is declared of every rule on each of them."""
