"""What the documentation says is so: scripts, commands, job kinds, links, and the error trees drawn in the modules."""

import importlib
import inspect
import os
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from profiler.__main__ import COMMANDS
from server.cli import app
from server.client import JobKind

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PACKAGES = ("nas", "profiler", "lookup_tables", "supernet", "server")

BRANCH = re.compile(r"^(?P<lead>[│ ]*)(?P<branch>[├└]── )?(?P<name>[A-Z]\w+)(?P<words> .*)?$")


def scripts() -> list[str]:
    found = [*(ROOT / "scripts").iterdir(), *(ROOT / "scripts" / "bench").glob("*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in found if path.is_file() and not path.name.startswith("_"))


def command_names(group: object, prefix: str = "heatnas") -> Iterator[str]:
    """Yield every command of a typer application as one types it."""
    for command in group.registered_commands:  # type: ignore[attr-defined]
        yield f"{prefix} {command.name or command.callback.__name__.replace('_', '-')}"
    for nested in group.registered_groups:  # type: ignore[attr-defined]
        yield from command_names(nested.typer_instance, f"{prefix} {nested.name or nested.typer_instance.info.name}")


def drawn_tree(text: str) -> dict[str, str]:
    """Read a tree of classes from a docstring: each name with its parent's, the root with `Exception`."""
    parents: dict[str, str] = {}
    above: list[str] = []
    for line in text.splitlines():
        match = BRANCH.match(line)
        if match is None or (match["branch"] is None and (above or match["words"])):
            continue
        depth = len(match["lead"]) // 4 + 1 if match["branch"] else 0
        del above[depth:]
        parents[match["name"]] = above[-1] if above else "Exception"
        above.append(match["name"])
    return parents


def modules() -> list[ModuleType]:
    names = [
        found.name
        for package in PACKAGES
        for found in pkgutil.walk_packages(importlib.import_module(package).__path__, package + ".")
        if ".migrations" not in found.name
    ]
    return [importlib.import_module(name) for name in (*PACKAGES, *names)]


def errors_of(module: ModuleType) -> dict[str, str]:
    return {
        name: found.__bases__[0].__name__
        for name, found in vars(module).items()
        if inspect.isclass(found) and issubclass(found, Exception) and found.__module__ == module.__name__
    }


def test_the_readme_names_every_script() -> None:
    assert [name for name in scripts() if name not in README] == []


def test_scripts_without_suffix_can_be_executed() -> None:
    assert [name for name in scripts() if "." not in name and not os.access(ROOT / name, os.X_OK)] == []


def test_the_readme_names_every_kind_of_job() -> None:
    assert [kind for kind in get_args(JobKind) if f"`{kind}`" not in README] == []


def test_the_readme_names_every_command() -> None:
    commands = [*command_names(app), *(f"heatnas-agent {name}" for name in COMMANDS)]

    assert len(commands) > 5
    assert [command for command in commands if command not in README] == []


def test_links_inside_the_repository_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]

    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_a_drawn_tree_is_read_as_drawn() -> None:
    drawn = (
        "Trouble.\n\nBaseError\n├── One     because\n│   └── Half more\n│                wrapped text\n└── Two\n\nEnd."
    )

    assert drawn_tree(drawn) == {"BaseError": "Exception", "One": "BaseError", "Half": "One", "Two": "BaseError"}


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_draws_its_errors(package: str) -> None:
    module = importlib.import_module(f"{package}.errors")

    assert drawn_tree(module.__doc__ or "") == errors_of(module)


def test_no_module_draws_errors_that_it_does_not_have() -> None:
    trees = {module.__name__: drawn_tree(module.__doc__ or "") for module in modules()}
    wrong = {name: tree for name, tree in trees.items() if tree and tree != errors_of(importlib.import_module(name))}

    assert len([name for name, tree in trees.items() if tree]) >= len(PACKAGES)
    assert wrong == {}


def test_exports_are_true() -> None:
    lying = [
        f"{module.__name__}.{name}"
        for module in modules()
        for name in getattr(module, "__all__", ())
        if not hasattr(module, name)
    ]

    assert lying == []


def test_the_changelog_keeps_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()

    assert text.startswith("# Changelog\n")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", heading) for heading in headings[1:])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= kinds
