import numpy as np
import pytest

from stunet.array_files import load_array, open_rows, write_array
from stunet.paths import user_path


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    return tmp_path if request.param == "disk" else user_path(request.getfixturevalue("bucket"))


@pytest.mark.parametrize("order", ["C", "F"])
def test_round_trip(folder, order):
    array = np.asarray(np.arange(24, dtype=np.float16).reshape(4, 3, 2), order=order)
    write_array(folder / "rows.npy", array)
    np.testing.assert_array_equal(load_array(folder / "rows.npy"), array)
    rows = np.array([3, 0, 3])
    np.testing.assert_array_equal(open_rows(folder / "rows.npy")[rows], array[rows])
    assert [path.name for path in folder.iterdir()] == ["rows.npy"]
