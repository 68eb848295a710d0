"""What is done inside somebody else's Trainer without a trace.

Here live extra passes, quiet validation, drawn weights, progress bars and loggers. No rule's equation.
"""
