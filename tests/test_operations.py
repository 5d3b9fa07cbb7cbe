"""Only the core lists the operations: no Python module repeats the list of their names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import fatnn_rs
from fatnn_rs.convert.torch_ops import RUNTIME_OPS
from fatnn_rs.operations import OPERATIONS

#: Module and variable of collections that may hold names: they map names to Python functions.
ALLOWED = {
    ("convert/torch_ops/floats.py", "FLOAT_OPS"),  # functions of torch
    ("convert/scalar.py", "SCALARS"),  # functions of torch, and the calls that become them
    ("convert/torch_ops/int8.py", "INT8_OPS"),
    ("convert/torch_ops/codes.py", "CODE_OPS"),
    ("convert/lower/functions.py", "_ARITHMETIC"),  # names of torch's functions and methods
    ("convert/lower/reductions.py", "_BY_NAME"),  # names of methods
    ("convert/lower/rearrange.py", "METHODS"),  # rows of the lowering, by methods of tensors
    ("convert/lower/compositions.py", "_NAMED"),  # names of functions and methods
    ("convert/lower/functions.py", "_OPERATORS"),  # names of Python's operators
    ("convert/lower/composed_moves.py", "__all__"),  # names of functions
    ("convert/capture_fx.py", "_IN_PLACE"),
    ("convert/lower/masks.py", "_COMPARISONS"),  # rows of the lowering, by names of methods
    ("convert/torch_ops/__init__.py", "_EVERYWHERE"),  # a property of torch's loops
    ("convert/torch_ops/floats.py", "_UNCHANGED"),  # names of torch's functions
    ("convert/torch_ops/spatial.py", "FLOATS"),  # functions of torch
    ("convert/value_places.py", "_ROLES"),  # rules about operations
    ("report.py", "_PRODUCTS"),  # functions that count products
    ("ops/definitions.py", "OPS"),  # operators of torch, by their own names
    ("ops/kernels.py", "KERNELS"),
}

#: Collections with at least this many names of operations count as lists.
MIN_NAMES = 3


def _strings_in(tree: ast.AST) -> set[str]:
    """Return the strings in a collection, and in collections inside it."""
    parts: list[ast.expr | None] = []
    if isinstance(tree, (ast.List, ast.Set, ast.Tuple)):
        parts = [*tree.elts]
    elif isinstance(tree, ast.Dict):
        parts = [*tree.keys, *tree.values]
    elif isinstance(tree, ast.Starred):
        parts = [tree.value]
    elif isinstance(tree, ast.Call):
        parts = [*tree.args]
    elif isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        return {tree.value}
    return {text for part in parts if part is not None for text in _strings_in(part)}


def _collections_of_names(path: Path) -> Iterator[tuple[str, int, set[str]]]:
    """Yield the variable (or ""), the line and the names of each list of operations."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    variables: dict[ast.AST, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            variables |= {part: ast.unparse(target) for part in ast.walk(node.value)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.List, ast.Set, ast.Tuple, ast.Dict)):
            names = _strings_in(node) & OPERATIONS.keys()
            if len(names) >= MIN_NAMES:
                yield variables.get(node, ""), node.lineno, names


def test_only_tables_of_functions_list_operation_names() -> None:
    root = Path(fatnn_rs.__file__).parent
    found, unused = [], set(ALLOWED)
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root).as_posix()
        for variable, line, names in _collections_of_names(path):
            if (module, variable) in ALLOWED:
                unused.discard((module, variable))
            else:
                found.append(f"{module}:{line} {variable}: {', '.join(sorted(names))}")
    assert not found, "ask fatnn_rs.operations instead:\n" + "\n".join(found)
    assert not unused


def test_search_finds_nested_collections_of_names(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    lines = [
        "A = ('relu', 'add')",
        "B = frozenset({'relu', *('add', 'pad')})",
        "if op in ('conv1d', 'conv2d', 'linear'): pass",
    ]
    path.write_text("\n".join(lines))
    assert [(variable, line) for variable, line, _ in _collections_of_names(path)] == [
        ("B", 2),
        ("", 3),
    ]


def test_torch_can_run_every_operation_of_a_file() -> None:
    assert set(RUNTIME_OPS) == {name for name, row in OPERATIONS.items() if row.in_files} - {
        "input"
    }
