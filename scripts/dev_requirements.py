"""Print the requirements of the package and its ``dev`` extra in pyproject.toml, one per line."""

from __future__ import annotations

import re
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10: pip brings a TOML reader of its own
    from pip._vendor import tomli as tomllib

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def requirements(wanted: list[str]) -> list[str]:
    """Replace the project's own extras by their requirements."""
    found: list[str] = []
    for requirement in wanted:
        own = re.fullmatch(rf"{PROJECT['name']}\[(.+)\]", requirement)
        if own:
            for extra in own[1].split(","):
                found += requirements(PROJECT["optional-dependencies"][extra.strip()])
        else:
            found.append(requirement)
    return found


print("\n".join(requirements([*PROJECT["dependencies"], f"{PROJECT['name']}[dev]"])))
