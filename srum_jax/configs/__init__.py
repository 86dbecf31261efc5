"""The configs in the package; `base.py` has every key."""
