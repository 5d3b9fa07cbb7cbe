"""Find and replace modules in plain lists, tuples and dicts, which torch does not search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

__all__ = ["contained", "named_modules", "register_contained", "replace"]

_STORES = ("_parameters", "_buffers", "_modules")

#: A function that undoes one change.
Undo = Callable[[], None]


def contained(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules in a module's own attributes, named ``name[index]`` or ``name[key]``."""
    for name, value in list(vars(module).items()):
        if name not in _STORES and not name.startswith("_"):
            yield from _modules_inside(name, value, set())


def _modules_inside(name: str, value: Any, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(value, nn.Module):
        yield name, value
        return
    if not isinstance(value, (list, tuple, dict)) or id(value) in seen:
        return
    seen.add(id(value))
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        yield from _modules_inside(f"{name}[{str(key).replace('.', '/')}]", item, seen)


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module once with its qualified name; those in plain containers come last."""
    seen = {id(module) for module in model.modules()}
    registered = list(model.named_modules())
    yield from registered
    for path, module in registered:
        for name, child in contained(module):
            if id(child) not in seen:
                start = f"{path}.{name}" if path else name
                for inner, found in named_modules(child):
                    if id(found) not in seen:
                        seen.add(id(found))
                        yield (f"{start}.{inner}" if inner else start), found


def register_contained(model: nn.Module) -> None:
    """Register modules in plain containers as children, under their names in ``named_modules``.

    Use this on a copy of a model before capturing it: torch.fx and torch.export know only
    registered children.
    """
    known = {id(module) for module in model.modules()}
    for module in list(model.modules()):
        if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            continue  # a new child would change what they run or list
        for name, child in contained(module):
            if id(child) not in known:
                module._modules[name] = child
                register_contained(child)
                known |= {id(inner) for inner in child.modules()}


def replace(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> list[Undo]:
    """Replace modules, also in plain containers.

    Parameters
    ----------
    model
        Changed in place.
    new
        Old module → new module.

    Returns
    -------
    list of callable
        Call them in order to undo the change.
    """
    undo: list[Undo] = []
    for _, module in list(named_modules(model)):
        for key, child in list(module._modules.items()):
            if child is not None and child in new:
                undo.insert(0, _undo_assignment(module._modules, key, child))
                module._modules[key] = new[child]
        for name, value in list(vars(module).items()):
            if name in _STORES or name.startswith("_"):
                continue
            made = _replaced(value, new, undo, set())
            if made is not value:
                undo.insert(0, _undo_assignment(vars(module), name, value))
                vars(module)[name] = made
    return undo


def _undo_assignment(store: Any, key: Any, value: Any) -> Undo:
    def restore() -> None:
        store[key] = value

    return restore


def _replaced(
    value: Any, new: Mapping[nn.Module, nn.Module], undo: list[Undo], seen: set[int]
) -> Any:
    """Return a value with the new modules. Lists and dicts change in place; tuples are copied."""
    if isinstance(value, nn.Module):
        return new.get(value, value)
    if not isinstance(value, (list, tuple, dict)) or id(value) in seen:
        return value
    seen.add(id(value))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    changed = {}
    for key in keys:
        made = _replaced(value[key], new, undo, seen)
        if made is not value[key]:
            changed[key] = made
    if not changed:
        return value
    if isinstance(value, tuple):
        items = [changed.get(i, item) for i, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    for key, made in changed.items():
        undo.insert(0, _undo_assignment(value, key, value[key]))
        value[key] = made
    return value
