"""Every module, function, test file, config and field that docs/paper.md names exists."""

import dataclasses
import functools
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import stunet.diffusion
import stunet.engine
import stunet.models
import stunet.training

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`([^`]+)`", PAGE)))
LINKS = sorted(set(re.findall(r"\]\(([^):]+)\)", PAGE)))


@functools.cache
def config_classes():
    """Returns the dataclasses that hold settings, by name."""
    classes = {}
    for package in (stunet.models, stunet.diffusion, stunet.engine, stunet.training):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for name, value in vars(importlib.import_module(module.name)).items():
                if dataclasses.is_dataclass(value) and isinstance(value, type):
                    classes.setdefault(name, value)
    return classes


def exists(name):
    """Looks up a path, a dotted name, or a field of a dataclass ("TemporalConfig.resample")."""
    if "/" in name:
        return (ROOT / name).exists()
    if name[0].isupper():
        class_name, _, field = name.partition(".")
        fields = dataclasses.fields(config_classes()[class_name])
        return field in {field.name for field in fields}
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        return bool(functools.reduce(getattr, parts[length:], value))
    return False


@pytest.mark.parametrize("name", NAMES)
def test_names_exist(name):
    assert exists(name)


@pytest.mark.parametrize("link", LINKS)
def test_links_lead_to_documents(link):
    assert (ROOT / "docs" / link.partition("#")[0]).exists()


def test_the_page_covers_the_paper():
    for heading in ("Section 3:", "Section 3.1:", "Section 3.2:", "Section 4:", "Section 5:"):
        assert f"### {heading}" in PAGE
    assert len(NAMES) > 100
    documented = {name for name in NAMES if name.startswith("stunet.models.temporal.")}
    for module in (
        "ConvInflationBlock",
        "AttentionInflationBlock",
        "TemporalDownsample",
        "TemporalUpsample",
    ):
        assert f"stunet.models.temporal.{module}" in documented
