"""What the command line says: which callbacks there are, what a configuration does, and what is wrong in one.

Nothing here trains, and nothing is imported from here but by ``cli.py``.
"""
