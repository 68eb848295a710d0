"""What only some of the releases do that are admitted."""

from __future__ import annotations

import pandas as pd
import pytest

# Older ones cut texts at a NUL byte, and make texts of numbers that no type fits, before anybody can see it.
NEW_PANDAS = pytest.mark.skipif(int(pd.__version__.split(".")[0]) < 3, reason="needs pandas 3")
