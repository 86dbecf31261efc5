"""What research tests is set up as the package's tests are."""

import conftest  # noqa: F401  (tests/conftest.py: pyproject.toml puts tests/ on the path)
