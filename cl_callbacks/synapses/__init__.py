"""State for every weight, and one optimizer step as the rules see it.

Here live the fields beside the parameters, where they are kept, and the order in which rules pull, rewrite
and observe. No Lightning but its exception type, and no rule's equation.
"""
