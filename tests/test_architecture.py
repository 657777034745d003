"""Imports point down, without circles, and names of modules are distinct."""

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Room -> rooms that it may import; every room may import the ground floor and itself.
GROUND = {
    "stunet",
    "stunet.array_files",
    "stunet.bucket_files",
    "stunet.checksums",
    "stunet.cluster",
    "stunet.compiling",
    "stunet.errors",
    "stunet.files",
    "stunet.memory",
    "stunet.paths",
    "stunet.plugins",
    "stunet.schema",
    "stunet.sharding",
    "stunet.signals",
    "stunet.text_states",
    "stunet.video_io",
}
BELOW = {
    "stunet.models": set(),
    "stunet.diffusion": set(),
    "stunet.text": set(),
    "stunet.weights": {"stunet.models", "stunet.diffusion"},
    "stunet.model": {"stunet.models", "stunet.diffusion", "stunet.weights", "stunet.text"},
    "stunet.conversion": {
        "stunet.model",
        "stunet.models",
        "stunet.diffusion",
        "stunet.weights",
        "stunet.text",
    },
    "stunet.evaluation": {"stunet.diffusion", "stunet.weights", "stunet.conversion"},
    "stunet.engine": {
        "stunet.model",
        "stunet.models",
        "stunet.diffusion",
        "stunet.weights",
        "stunet.text",
    },
    "stunet.api": {"stunet.engine", "stunet.model"},
    "stunet.training": {
        "stunet.engine",
        "stunet.model",
        "stunet.models",
        "stunet.diffusion",
        "stunet.weights",
        "stunet.text",
    },
    "stunet.studio": {
        "stunet.engine",
        "stunet.model",
        "stunet.diffusion",
        "stunet.evaluation",
        "stunet.text",
        "stunet.weights",
    },
    "stunet.cli": {
        "stunet.engine",
        "stunet.studio",
        "stunet.evaluation",
        "stunet.conversion",
        "stunet.diffusion",
        "stunet.text",
        "stunet.weights",
    },
    "data": {"stunet.text"},
}


def modules() -> dict[str, Path]:
    paths = [p for room in ("stunet", "data", "experiments") for p in (ROOT / room).rglob("*.py")]
    names = (".".join(p.relative_to(ROOT).with_suffix("").parts) for p in paths)
    return {name.removesuffix(".__init__"): p for name, p in zip(names, paths, strict=True)}


def imports(path: Path, known: set[str], top_level_only: bool) -> set[str]:
    """Our modules that a file imports; for type checking only does not count."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in known else node.module)
    return found & known


def room(module: str) -> str:
    if module.split(".")[0] in ("data", "experiments"):
        return module.split(".")[0]
    return ".".join(module.split(".")[:2])


def test_imports_point_down():
    known = modules()
    wrong = [
        f"{name} imports {target}"
        for name, path in known.items()
        if (own := room(name)) in BELOW | dict.fromkeys(GROUND)
        for target in imports(path, set(known), top_level_only=False)
        if room(target) not in {own} | GROUND | BELOW.get(own, set())
        and not (own == "stunet" and name == "stunet")  # the lazy facade
    ]
    assert not wrong


def test_no_circles():
    known = modules()
    graph = {name: imports(path, set(known), True) - {name} for name, path in known.items()}
    while removable := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in removable:
            del graph[name]
    # A package's `__init__` imports its modules, which import each other through their own names.
    assert not {name: sorted(targets & graph.keys()) for name, targets in graph.items()}


def test_no_three_modules_of_one_name():
    names = Counter(path.name for path in modules().values())
    assert [name for name, n in names.items() if n > 2 and not name.startswith("__")] == []


def test_the_walks_name_files_and_do_not_return():
    for walk in (ROOT / "docs" / "architecture.md").read_text().split("### ")[1:]:
        rows = [line.split("|")[2] for line in walk.splitlines() if re.match(r"\| \d+ \|", line)]
        steps = [re.findall(r"`([\w/]+(?:\.py|/))`", row) for row in rows]
        assert len(steps) >= 10 and all(steps)
        first = [step[0] for step in steps]
        assert len(set(first)) == len(first)
        for path in first:
            assert (ROOT / path).exists(), path
