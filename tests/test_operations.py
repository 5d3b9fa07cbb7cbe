"""The table of operations is the core's: no other place in the package lists their names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import fatnn_rs
from fatnn_rs.convert.torch_ops import RUNTIME_OPS
from fatnn_rs.operations import OPERATIONS

#: Collections that may hold names: module and variable. They map names to functions, which only
#: Python has.
FUNCTIONS = {
    ("convert/torch_ops/floats.py", "FLOAT_OPS"),  # functions of torch
    ("convert/scalar.py", "SCALARS"),  # functions of torch, and the calls that become them
    ("convert/torch_ops/int8.py", "INT8_OPS"),
    ("convert/torch_ops/codes.py", "CODE_OPS"),
    ("convert/lower/functions.py", "_ARITHMETIC"),  # names of torch's functions and methods
    ("convert/lower/reductions.py", "_BY_NAME"),  # names of methods
    ("convert/lower/rearrange.py", "METHODS"),  # rows of the lowering, by methods of tensors
    ("convert/lower/functions.py", "_OPERATORS"),  # names of Python's operators
    ("convert/capture.py", "_IN_PLACE"),
    ("ops/definitions.py", "OPS"),  # operators of torch, by their own names
    ("ops/kernels.py", "KERNELS"),
}

#: As many names are a list.
LIST = 3


def _strings(tree: ast.AST) -> set[str]:
    """Strings that stand in a collection, in those inside it too."""
    parts: list[ast.expr | None] = []
    if isinstance(tree, (ast.List, ast.Set, ast.Tuple)):
        parts = [*tree.elts]
    elif isinstance(tree, ast.Dict):
        # Keys of a table, and its values where they are strings.
        parts = [*tree.keys, *tree.values]
    elif isinstance(tree, ast.Starred):
        parts = [tree.value]
    elif isinstance(tree, ast.Call):
        parts = [*tree.args]
    elif isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        return {tree.value}
    return {text for part in parts if part is not None for text in _strings(part)}


def _collections(path: Path) -> Iterator[tuple[str, int, set[str]]]:
    """Collections of names of operations: the variable, if any, the line and the names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    variables: dict[ast.AST, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            variables |= {part: ast.unparse(target) for part in ast.walk(node.value)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.List, ast.Set, ast.Tuple, ast.Dict)):
            names = _strings(node) & OPERATIONS.keys()
            if len(names) >= LIST:
                yield variables.get(node, ""), node.lineno, names


def test_nothing_lists_operations_but_tables_of_functions() -> None:
    root = Path(fatnn_rs.__file__).parent
    found, unused = [], set(FUNCTIONS)
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root).as_posix()
        for variable, line, names in _collections(path):
            if (module, variable) in FUNCTIONS:
                unused.discard((module, variable))
            else:
                found.append(f"{module}:{line} {variable}: {', '.join(sorted(names))}")
    assert not found, "ask fatnn_rs.operations instead:\n" + "\n".join(found)
    assert not unused


def test_lists_are_found(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    lines = [
        "A = ('relu', 'add')",
        "B = frozenset({'relu', *('add', 'pad')})",
        "if op in ('conv1d', 'conv2d', 'linear'): pass",
    ]
    path.write_text("\n".join(lines))
    assert [(variable, line) for variable, line, _ in _collections(path)] == [("B", 2), ("", 3)]


def test_torch_runs_what_a_file_may_hold() -> None:
    assert set(RUNTIME_OPS) == {name for name, row in OPERATIONS.items() if row.in_files} - {
        "input"
    }
