"""Damage to each file of a folder: a changed, missing or added byte."""

import json
import logging

import pytest

from experiments.verify import verify
from stunet.checksums import (
    CHECKSUMS,
    check_files,
    checksum,
    read_checksums,
    report_unchecked,
    write_checksums,
)
from stunet.errors import UserError
from stunet.weights.model_folder import open_model_folder
from tests.tiny import save_tiny_model


def damages(path):
    """Damages a file in several ways, one after the other, and yields after each. Repairs it."""
    content = path.read_bytes()
    for place in sorted({0, len(content) // 2, len(content) - 1}):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        yield
    path.write_bytes(content + b" ")
    yield
    path.write_bytes(content[:-1])
    yield
    path.unlink()
    yield
    path.write_bytes(content)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "check").write_bytes(b"123456789")
    (tmp_path / "part" / "rest").write_bytes(b"\0" * 32)
    write_checksums(tmp_path)
    return tmp_path


def test_the_published_check_values(folder):
    """CRC-32C of "123456789" (RFC 3385) and of 32 zero bytes (RFC 3720, B.4)."""
    assert checksum(b"123456789") == 0xE3069283
    found = read_checksums(folder)
    assert found == {"check": (9, "e3069283"), "part/rest": (32, "8a9136aa")}


def test_each_damage_is_found(folder):
    assert check_files(folder)
    for name in ("check", "part/rest"):
        for _ in damages(folder / name):
            with pytest.raises(UserError, match=f"^{folder / name}: "):
                check_files(folder)
            other = {"check", "part/rest"} - {name}
            assert check_files(folder, other)
    sizes = []
    assert check_files(folder, progress=sizes.append)
    assert sizes == [9, 32]


def test_selected_files(folder):
    shares = []
    for k in range(2):
        check_files(folder, share=slice(k, None, 2), progress=shares.append)
    assert shares == [9, 32]
    (folder / "check").write_bytes(b"987654321")
    assert check_files(folder, size_only=lambda name: name == "check")
    with pytest.raises(UserError, match="check: .*e3069283"):
        check_files(folder)
    write_checksums(folder, lambda name: name == "check")
    assert read_checksums(folder).keys() == {"check"}
    with pytest.raises(UserError, match=f"{CHECKSUMS}: .*part/rest"):
        check_files(folder, ["part/rest"])


@pytest.mark.parametrize("content", ["[1]", '{"check": 1}', '{"check": {"bytes": 9}}', "{", "\0"])
def test_damaged_checksums(folder, content):
    (folder / CHECKSUMS).write_text(content)
    with pytest.raises(UserError, match=f"^{folder / CHECKSUMS}: "):
        check_files(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "model")


def test_no_byte_of_a_model_can_change_unnoticed(model):
    assert read_checksums(model).keys() | {CHECKSUMS} == {path.name for path in model.iterdir()}
    for path in sorted(model.iterdir()):
        for _ in damages(path):
            if path.name == CHECKSUMS and not path.exists():
                continue
            try:
                open_model_folder(model)
            except UserError as error:
                assert str(path.name) in str(error) and "\n" not in str(error)
            else:  # white space at the end of the JSON
                assert path.name == CHECKSUMS and json.loads(path.read_text())
    open_model_folder(model)


def test_models_of_older_versions_are_reported_once(model, caplog):
    content = (model / CHECKSUMS).read_bytes()
    (model / CHECKSUMS).unlink()
    report_unchecked.cache_clear()
    with caplog.at_level(logging.WARNING, "stunet"):
        for _ in range(2):
            open_model_folder(model)
    assert [CHECKSUMS in record.getMessage() for record in caplog.records] == [True]
    assert str(model) in caplog.records[0].getMessage()
    (model / CHECKSUMS).write_bytes(content)


def test_verify(model, capsys):
    root = model.parent
    (root / "notes.txt").write_text("a note")
    assert verify(root) == 0
    output = capsys.readouterr()
    assert f"{model}: {len(read_checksums(model))} files" in output.out
    assert "1 files" in output.out and "notes.txt" in output.out
    weights = model / "unet_temporal.safetensors"
    for _ in damages(weights):
        assert verify(root) == 2
        output = capsys.readouterr()
        assert str(weights) in output.err and "damaged" in output.err
    assert verify(model) == 0
    for path in (root / "absent", weights):
        with pytest.raises(UserError, match=f"{path}: "):
            verify(path)
