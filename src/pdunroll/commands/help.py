"""The text of `pdunroll COMMAND --help`: the groups of conf/, and every setting with its comment in `config.py`."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from omegaconf import OmegaConf

from pdunroll.commands.config import Config

FIELD = re.compile(r"^    (?P<name>\w+): (?P<type>[^=#]+?)(?: = .*?)?(?:  # (?P<comment>.*))?$")
TEMPLATE = """\
Settings are given as NAME=VALUE, the files of a group as GROUP=FILE; -m runs a sweep, --hydra-help lists further flags.

== Groups ==
$APP_CONFIG_GROUPS
== Settings ==
{settings}

== Values ==
$CONFIG"""


# An option of Hydra's group hydra/help
NODE = {"app_name": "pdunroll", "header": "", "footer": "", "template": "${pdunroll_help:}"}


@cache  # Hydra asks for it each time it composes the settings
def text() -> str:
    """Return the template of the help, with the comments in the source of `config.py`."""
    return TEMPLATE.format(settings="\n".join(explained(Config)))


OmegaConf.register_new_resolver("pdunroll_help", text, replace=True)


def explained(kind: type, prefix: str = "") -> Iterator[str]:
    """Yield the lines that explain the fields of a dataclass and of nested ones: name, type and comment."""
    hints = get_type_hints(kind)
    comments = dict(comments_of(kind))
    for own in fields(kind):  # pyright: ignore[reportArgumentType]
        hint: Any = hints[own.name]
        if is_dataclass(hint):
            yield f"{prefix}{own.name}: {inspect.getdoc(hint)}".splitlines()[0]
            yield from explained(hint, f"{prefix}{own.name}.")  # pyright: ignore[reportArgumentType]
        else:
            shown, comment = comments[own.name]
            line = f"  {prefix}{own.name} ({shown})" + (f": {comment}" if comment else "")
            yield from textwrap.wrap(line, 110, subsequent_indent="      ")


def comments_of(kind: type) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the name of each field, its type as written, and the comment on its line or the one before."""
    before = ""
    for line in inspect.getsource(kind).splitlines():
        if found := FIELD.match(line):
            yield found["name"], (found["type"], found["comment"] or before)
        before = line.strip().removeprefix("# ") if line.strip().startswith("#") else ""
