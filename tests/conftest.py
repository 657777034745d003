import pytest


def pytest_collection_modifyitems(items):
    """Keeps a file's tests in one process, and those together that share the training run."""
    for item in items:
        group = "runs" if "whole" in getattr(item, "fixturenames", ()) else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
