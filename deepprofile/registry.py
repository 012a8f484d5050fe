"""Plugins: found by name among the installed entry points, or registered for this process."""

import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from cytominer_tools.errors import InputError

GROUPS = ("deepprofile.networks", "deepprofile.locators", "deepprofile.heads")

_registered: dict[tuple[str, str], Any] = {}


def register(group: str, name: str, plugin: Callable[..., Any]) -> None:
    """Make `plugin` known as `name` in `group` for this process, before any installed one of that name.

    Parameters
    ----------
    group : "deepprofile.networks", "deepprofile.locators" or "deepprofile.heads"
    name : str
    plugin : callable with the signature of its group

    Raises
    ------
    InputError
        Another group.
    """
    _known(group)
    _registered[group, name] = plugin


def load(group: str, name: str) -> Any:
    """The plugin called `name` in `group`.

    Raises
    ------
    InputError
        None is, or two installed packages claim the name.
    """
    _known(group)
    if (group, name) in _registered:
        return _registered[group, name]
    match [e for e in entry_points(group=group) if e.name == name]:
        case [one]:
            return one.load()
        case []:
            raise InputError(f"no {group} plugin is called {name!r}; installed: {', '.join(names(group)) or 'none'}")
        case many:
            claims = ", ".join(e.value for e in many)
            raise InputError(f"{name!r} is claimed by {claims}; uninstall all but one")


def names(group: str) -> list[str]:
    """The names known in `group`, sorted."""
    _known(group)
    return sorted({e.name for e in entry_points(group=group)} | {n for g, n in _registered if g == group})


def package(group: str, name: str) -> str:
    """The package that `name` comes from, with its version; "this process" where it was registered."""
    found = [e.dist for e in entry_points(group=group) if e.name == name and (group, name) not in _registered]
    return f"{found[0].name} {found[0].version}" if found and found[0] else "this process"


def _known(group: str) -> None:
    if group not in GROUPS:
        raise InputError(f"no plugin group {group!r}; the groups are {', '.join(GROUPS)}")


def describe() -> list[dict[str, Any]]:
    """Every known plugin: group, name, package, source, licence, first line of its docstring, and its options.

    One that cannot be loaded says so in place of its docstring.
    """
    return [_described(group, name) for group in GROUPS for name in names(group)]


def _described(group: str, name: str) -> dict[str, Any]:
    row = {"group": group.removeprefix("deepprofile."), "name": name, "package": package(group, name)}
    try:
        plugin = load(group, name)
        options = inspect.signature(plugin).parameters.values()
    except Exception as error:  # of another package: a missing library, a slip in its entry point
        return row | {"source": None, "licence": None, "about": f"cannot be loaded: {error}", "options": []}
    given = {"channels", "size", "classes", "image", "pixel_size_um", "self"}
    return row | {
        "source": getattr(plugin, "source", "source not given"),
        "licence": getattr(plugin, "licence", "licence not given"),
        "about": (inspect.getdoc(plugin) or "").split("\n")[0],
        "options": [f"{p.name}={p.default}" for p in options if p.name not in given],
    }
