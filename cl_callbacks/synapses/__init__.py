"""State for every weight, and one optimizer step as the rules see it.

Here live the fields of state and the devices they are stored on, and the order in which rules pull, rewrite
and observe. Nothing here imports Lightning, except its exception type, or contains the equation of a rule.
"""
