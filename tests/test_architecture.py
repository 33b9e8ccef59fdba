"""CONTRIBUTING lists packages and modules line by line: what stands in one imports nothing from a line above."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import stylize_batch

PACKAGE = Path(stylize_batch.__file__).parent
CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"


def listed() -> list[str]:
    """Return the lines of the list."""
    text = CONTRIBUTING.read_text()
    return text[text.index("\ncli ") :].partition("```")[0].strip().splitlines()


def place(name: str, lines: list[str]) -> int:
    """Return the line that names a module or package of the top level."""
    first, beside = re.compile(rf"(\S+  )?{name}(/|\s)"), re.compile(rf"\S.*(· |\(){name}:")
    for pattern in (first, beside):
        for number, line in enumerate(lines):
            if pattern.match(line):
                return number
    raise AssertionError(f"CONTRIBUTING has no line for {name}")


def imports(path: Path) -> Iterator[str]:
    """Yield the modules and packages of the top level that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (
                each.name.split(".")[1] for each in node.names if each.name.startswith("stylize_batch.")
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stylize_batch"):
            _, _, below = (node.module or "").partition(".")
            yield from [below.partition(".")[0]] if below else [alias.name for alias in node.names]


def test_no_modules_of_the_network_import_each_other_in_a_circle() -> None:
    of_model = {path.stem: path for path in (PACKAGE / "model").glob("*.py")}
    left = {
        name: {
            (node.module or "").rpartition(".")[2]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stylize_batch.model.")
        }
        for name, path in of_model.items()
    }
    assert sum(map(len, left.values())) > 30
    while free := {name for name, needed in left.items() if not needed & left.keys()}:
        left = {name: needed for name, needed in left.items() if name not in free}
    assert not left


def test_imports_run_one_way_down_the_list() -> None:
    lines = listed()
    files = [
        path for path in PACKAGE.rglob("*.py") if not path.name.startswith("__") or path.parent != PACKAGE
    ]
    upwards: list[str] = []
    seen = 0
    for path in files:
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for other in set(imports(path)) - {own, "__version__"}:
            seen += 1
            if place(own, lines) > place(other, lines):
                upwards.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert seen > 100
    assert not upwards


def test_every_module_has_its_place_in_the_list() -> None:
    lines = listed()
    names = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    for name in names - {"__init__", "__main__", "__pycache__"}:
        assert place(name, lines) >= 0, name
