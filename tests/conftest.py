import pytest

# The fixture that trains once for several files (tests/experiments/conftest.py).
SHARED_RUN = "whole"


def pytest_collection_modifyitems(items):
    """Groups tests for `--dist=loadgroup`: by file, or all that use the shared training run."""
    for item in items:
        shared = SHARED_RUN in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("runs" if shared else item.path.name))
