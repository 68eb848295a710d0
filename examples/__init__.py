"""Examples that run by themselves; configurations name their modules, as in ``examples.digits``."""
