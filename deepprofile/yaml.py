"""YAML in: null, true, false and plain decimal numbers of YAML 1.2; the rest is text, identifiers included."""

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.resolver import VersionedResolver

from cytominer_tools.errors import InputError

# tag, pattern, first characters
_SCALARS = (
    ("null", r"^(?:~|null|)$", ["~", "n", ""]),
    ("bool", r"^(?:true|false)$", ["t", "f"]),
    ("int", r"^[-+]?(?:0|[1-9]\d*)$", list("-+0123456789")),
    ("float", r"^[-+]?(?:(?:0|[1-9]\d*)?\.\d+|(?:0|[1-9]\d*)\.?)(?:[eE][-+]?\d+)?$", list("-+.0123456789")),
)


class _Core(VersionedResolver):
    """Plain scalars are null, true, false or a number; NO, 0012, 12:30 and 2026-01-31 are text."""

    @property
    def versioned_resolver(self) -> dict[str, list[tuple[str, re.Pattern[str]]]]:
        rules: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
        for tag, pattern, firsts in _SCALARS:
            for first in firsts:
                rules.setdefault(first, []).append((f"tag:yaml.org,2002:{tag}", re.compile(pattern)))
        return rules


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in `path`; nothing in it is executed.

    Raises
    ------
    InputError
        No such file, not YAML (with the line), a key twice, an alias, or not a mapping.
    """
    reader = YAML(typ="safe", pure=True)
    reader.Resolver = _Core
    try:
        text = path.read_text("utf-8-sig")
        found = reader.load(text)
        # ten lines of aliases can stand for a billion values, or for a list that holds itself
        if alias := next((e for e in YAML(typ="safe", pure=True).parse(text) if isinstance(e, AliasEvent)), None):
            raise InputError(f"{path}: line {alias.start_mark.line + 1}: *{alias.anchor} is an alias; write it out")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file; `deepprofile init` writes one") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read, {error.strerror}") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply; mend the YAML") from None
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"{path}: {where}{getattr(error, 'problem', None) or error}; mend the YAML") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a mapping of settings, got {type(found).__name__}")
    return found
