"""What is to be seen on a real GPU: a file for each kind of check, and all of them in ``every_check``."""
