"""Print the requirements of the package and of its development extra, as pyproject.toml names them, one a line."""

from __future__ import annotations

import re
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10: pip brings a TOML reader of its own
    from pip._vendor import tomli as tomllib

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def requirements(wanted: list[str]) -> list[str]:
    """Replace this project's own extras by what they stand for."""
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
