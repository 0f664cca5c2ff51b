"""Which part may import which, read from the source: cli -> trainer -> stages; rollout and learner know nothing of each
other; analysis reads record files and never live objects. A new edge is a decision: change the table on purpose."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "pyrl"
COMMON = {"types", "config", "telemetry"}
STAGES = {"data", "rollout", "reward", "algorithms", "learner", "weights", "stages"}
# Part (folder or module of pyrl) -> parts it may import besides itself and COMMON.
ALLOWED: dict[str, set[str]] = {
    "__main__": {"cli", "interrupts"},
    "cli": {"trainer", "quickstart", "study", "doctor", "evaluation", "analysis", "learner", "run_folder", "weights",
            "foreign_warnings", "interrupts"},
    "study": {"jobs", "quickstart", "run_folder", "analysis", "evaluation", *STAGES},
    "quickstart": {"jobs", "run_folder", "analysis", "evaluation", *STAGES},
    "jobs": {"trainer", "rollout", "learner", "foreign_warnings"},
    "trainer": {"analysis", "evaluation", "run_folder", *STAGES},
    "run_folder": {"learner"},
    "stages": {"evaluation", "ops", *STAGES},
    "evaluation": {"rollout", "reward", "data", "ops"},
    "learner": {"algorithms", "ops", "weights"},
    "weights": {"learner", "rollout"},
    "algorithms": {"ops"},
    "analysis": {"algorithms"},
    "doctor": {"ops"},
    "foreign_warnings": set(),
    "interrupts": set(),
    "data": {"ops", "reward"},
    "ops": set(),
    "reward": set(),
    "rollout": set(),
    "telemetry": set(),
    "config": set(),
    "types": set(),
}
# External library -> the only parts that may name it.
EXTERNAL = {"megatron": {"learner"}, "vllm": {"rollout", "weights"}}


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of pyrl."""
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "pyrl"


def nodes(tree: ast.AST, deferred: bool) -> Iterator[ast.AST]:
    """Every node; without `deferred`, only what runs on import: no function bodies, no `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(tree):
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_typing = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
        if deferred or not (is_function or is_typing):
            yield child
            yield from nodes(child, deferred)


def imports(tree: ast.AST, deferred: bool = True) -> Iterator[str]:
    """Dotted names that a module imports; `from a import b` yields `a.b`, for b may be a module."""
    for node in nodes(tree, deferred):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which part is named"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def imports_of(module: str, deferred: bool = True) -> tuple[str, ...]:
    return tuple(imports(ast.parse(modules()[module].read_text()), deferred))


def internal_imports(module: str, deferred: bool = True) -> set[str]:
    """Modules of pyrl that `module` imports."""
    targets = set()
    for name in imports_of(module, deferred):
        while name.startswith("pyrl.") and name not in modules():
            name = name.rpartition(".")[0]
        if name.startswith("pyrl."):
            targets.add(name)
    return targets - {module}


def reachable(start: str) -> set[str]:
    """Modules of pyrl that importing `start` may load, their packages' __init__ included."""
    seen, todo = set(), [start]
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        package = module.rpartition(".")[0]
        todo += internal_imports(module) | ({package} if package in modules() else set())
    return seen


def parts_reached(part: str) -> dict[str, set[str]]:
    starts = [module for module in modules() if part_of(module) == part]
    return {module: {part_of(reached) for reached in reachable(module)} for module in starts}


def test_import_reader_sees_every_form() -> None:
    source = "import pyrl.a.b\nfrom pyrl.c import d\ndef f():\n    from pyrl import e\n    import x as y\n"
    assert list(imports(ast.parse(source))) == ["pyrl.a.b", "pyrl.c.d", "pyrl.e", "x"]
    assert list(imports(ast.parse(source), deferred=False)) == ["pyrl.a.b", "pyrl.c.d"]
    assert list(imports(ast.parse("if TYPE_CHECKING:\n    import a\n"), deferred=False)) == []


def test_every_part_is_in_the_table() -> None:
    parts = {part_of(module) for module in modules()} - {"pyrl"}
    assert parts <= ALLOWED.keys()
    assert {"cli", "trainer", "learner", "rollout", "weights", "ops"} <= parts


@pytest.mark.parametrize("part", ALLOWED)
def test_part_imports_only_what_it_may(part: str) -> None:
    allowed = ALLOWED[part] | COMMON | {part, "pyrl"}
    for module in modules():
        if part_of(module) == part:
            wrong = {target for target in internal_imports(module) if part_of(target) not in allowed}
            assert not wrong, f"{module} may not import {sorted(wrong)}"


@pytest.mark.parametrize(
    ("part", "never"),
    [
        ("learner", {"rollout", "reward", "data", "stages", "trainer"}),
        ("rollout", {"learner", "reward", "weights", "stages", "trainer"}),
        ("reward", {"learner", "rollout", "weights", "ops", "stages", "trainer"}),
        ("algorithms", {"learner", "rollout", "weights", "stages", "trainer"}),
        ("analysis", {"learner", "rollout", "reward", "weights", "stages", "trainer"}),
    ],
)
def test_part_never_reaches_another_by_a_detour(part: str, never: set[str]) -> None:
    for module, parts in parts_reached(part).items():
        assert not parts & never, f"{module} reaches {sorted(parts & never)}"


def test_no_import_cycle_between_modules() -> None:
    """Over what runs on import: a factory that defers the import of one of its products is no cycle."""
    for module in modules():
        seen, todo = set(), list(internal_imports(module, deferred=False))
        while todo:
            target = todo.pop()
            assert target != module, f"{module} imports itself through {sorted(seen)}"
            if target not in seen:
                seen.add(target)
                todo += internal_imports(target, deferred=False)


@pytest.mark.parametrize("library", EXTERNAL)
def test_external_library_stays_in_its_part(library: str) -> None:
    users = {part_of(m) for m in modules() if any(name.split(".")[0] == library for name in imports_of(m))}
    assert users, f"no module imports {library}: is the table out of date?"
    assert users <= EXTERNAL[library]
