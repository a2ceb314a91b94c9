"""Test settings: typed keys and no reuse of a key anywhere (identity 12), on the CPU."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
