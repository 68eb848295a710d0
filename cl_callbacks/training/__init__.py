"""Work inside a running Trainer that leaves the training itself unchanged.

Here live extra passes, quiet validation, weight noise, progress bars and loggers, but no rule's equation.
"""
