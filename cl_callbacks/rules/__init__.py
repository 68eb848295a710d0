"""The rules: callbacks that decide how plastic each synapse is.

Here live the base class of all rules and a folder for each family. Equations are in ``functional``, and a
rule imports no other rule, unless it is a special case of that.
"""
