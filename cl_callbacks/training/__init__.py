"""Work inside a running Trainer that leaves the training itself unchanged.

Here live extra passes, quiet validation and fits, training at drawn weights, progress bars, loggers and log
keys, and the one file that touches Lightning's private attributes. No rule's equation.
"""
