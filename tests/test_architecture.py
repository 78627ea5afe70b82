"""The house: imports point one way, from the top floor down, and no files or folders stand in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import freezealign

ROOT = Path(freezealign.__file__).parent
FLOORS = [
    {"files", "forms", "batch", "prefetch", "vectors", "words", "markdown", "figures", "moments"},
    {"hub", "inputs"},
    {"images"},
    {"modality"},
    {"modules"},
    {"encoders"},
    {"data"},
    {"features"},
    {"samples", "space"},
    {"training", "alignment", "evaluation", "curation"},
    {"card", "saving", "integrations", "model"},
    {"demo"},
    {"cli"},
]
"""From the ground up. What is on one floor may know each other, as long as nothing runs in a circle."""
FACADE = "freezealign.model"
"""The one file that may import upwards, inside its functions."""
FACES = {"freezealign", "freezealign.__main__"}
"""The package's own face, which names everything, and the door to the command line."""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def imports(module: str, tree: ast.AST) -> Iterator[str]:
    """Yield the files of the package that a piece of code imports, those for types only too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            wholes = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found = {whole if whole in FILES else node.module for whole in wholes.values()}
        elif isinstance(node, ast.Import):
            found = {alias.name for alias in node.names}
        else:
            continue
        yield from (name for name in found if name in FILES and name != module)


def arrows(module: str) -> set[str]:
    """Return what a file imports; of the facade, only what it imports at once."""
    tree = FILES[module]
    if module == FACADE:
        body = [node for node in tree.body if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.If))]
        tree = ast.Module(body, [])
    return set(imports(module, tree)) - FACES


def room(module: str) -> str:
    """Return the file or folder directly below the package that a file belongs to."""
    return module.split(".")[1]


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Return the nodes that can be reached from themselves."""

    def reached(start: str) -> set[str]:
        seen, left = set(), list(graph[start])
        while left:
            if (node := left.pop()) not in seen:
                seen.add(node)
                left += graph.get(node, ())
        return seen

    return [node for node in graph if node in reached(node)]


HOUSE = {module: arrows(module) for module in FILES if module not in FACES}


def test_every_room_has_its_floor():
    assert {room(module) for module in HOUSE} == set().union(*FLOORS)


@pytest.mark.parametrize("module", HOUSE)
def test_imports_point_downwards(module):
    height = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    climbs = [other for other in HOUSE[module] if height[room(other)] > height[room(module)]]
    assert not climbs, f"{module} imports from a floor above it: {climbs}"


def test_no_files_stand_in_a_circle():
    assert circles(HOUSE) == []


def test_no_rooms_stand_in_a_circle():
    rooms: dict[str, set[str]] = {room(module): set() for module in HOUSE}
    for module, others in HOUSE.items():
        rooms[room(module)] |= {room(other) for other in others} - {room(module)}
    assert circles(rooms) == []


def folder(module: str) -> str:
    """Return the folder that a file lies in; ``__init__.py`` lies in the folder that it is the face of."""
    is_face = (ROOT.parent / module.replace(".", "/")).is_dir()
    return module if is_face else module.rpartition(".")[0]


def test_no_folders_stand_in_a_circle():
    graph: dict[str, set[str]] = {folder(module): set() for module in HOUSE}
    for module, others in HOUSE.items():
        graph[folder(module)] |= {folder(other) for other in others} - {folder(module)}
    leaves = graph.pop("freezealign")  # its files are rooms of their own, on many floors
    assert leaves and circles({name: others - {"freezealign"} for name, others in graph.items()}) == []


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


def test_type_only_imports_count():
    tree = ast.parse("if TYPE_CHECKING:\n    from freezealign.model import FreezeAlign")
    assert list(imports("freezealign.files", tree)) == ["freezealign.model"]
