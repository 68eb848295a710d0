"""The rules: callbacks that decide how plastic each synapse is.

Here live what all rules share and a folder for each family. Equations are in ``functional``, and a rule
imports no other rule.
"""
