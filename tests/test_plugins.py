import sys

import pytest

from stunet.errors import UserError
from stunet.plugins import resolve

TABLE = {"one": 1, "two": 2}


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "outside_package.py").write_text("value = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("outside_package", None)


def test_names_of_the_table():
    assert resolve("number", "two", TABLE) == 2


def test_objects_from_outside():
    assert resolve("number", "outside_package:value", TABLE) == 3
    assert resolve("number", "os.path:sep", TABLE) == "/"


def test_the_table_has_priority():
    assert resolve("number", "outside_package:value", {"outside_package:value": 4}) == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("three", r"number: .*'three'.*one, two.*module:name"),
        ("absent_package:value", r"number: .*'absent_package:value'.*absent_package"),
        ("outside_package:other", r"number: .*'outside_package:other'.*'other'"),
        (":value", r"number: .*':value'"),
        ("outside_package:", r"number: .*'outside_package:'"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(UserError, match=message) as error:
        resolve("number", name, TABLE)
    assert "\n" not in str(error.value)
