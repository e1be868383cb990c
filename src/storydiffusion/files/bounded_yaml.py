"""YAML from users: plain data in bounded time and memory, or one sentence that names the line."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from storydiffusion.errors import UserError
from storydiffusion.files import bounded_text

LARGEST_FILE = 2**18  # bytes; 1,000 panels take a tenth of a second
MOST_VALUES = 10_000
"""Upper bound of the number of keys and values, where an alias counts all that it repeats."""
DEEPEST = 20
LONGEST_NUMBER = 100  # characters


def read_text(path: Path, kind: str) -> str:
    """Read a UTF-8 text file of at most LARGEST_FILE bytes; `kind` says in errors what it is. Raises UserError."""
    try:
        text = bounded_text.read_text(path, LARGEST_FILE)
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UserError(
            f"cannot read the {kind} {path} ({reason}): give a UTF-8 text of at most {LARGEST_FILE // 1024} KiB"
        ) from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def parse_yaml(text: str, where: str) -> Any:
    """Return the data of a YAML text: dictionaries, lists and scalars; `where` names its source in errors.

    Raises:
        UserError: not YAML, a key given twice, a tag, a lone surrogate, an alias inside its own anchor, more than
            MOST_VALUES keys and values, or more than DEEPEST levels.
    """
    try:
        return yaml.load(text, Loader=_BoundedLoader)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = f"{error.problem}{line}"
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        problem = " ".join(str(error).split())
    raise UserError(f"{where} is not valid YAML ({problem}): correct it; text with [ ], # or : needs quotes")


class _BoundedLoader(yaml.SafeLoader):
    """A safe loader that refuses, while parsing, what no hand-written file contains."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._values = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None):
            raise _problem(f"the tag {event.tag} is not supported", event)
        if self._depth == DEEPEST:
            raise _problem(f"more than {DEEPEST} levels are nested", event)
        self._depth += 1
        before = self._values
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise _problem(f"the alias *{event.anchor} is inside its own anchor", event)
            self._values += self._sizes[id(node)]
        else:
            self._values += 1
            self._sizes[id(node)] = self._values - before
        if self._values > MOST_VALUES:
            raise _problem(f"more than {MOST_VALUES} keys and values", event)
        return node

    def compose_scalar_node(self, anchor: dict[str, yaml.Node]) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        try:  # an escaped pair of surrogates is one character, as in JSON
            node.value = node.value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            raise _problem("an escape is half of a surrogate pair, not a character", node) from None
        if node.tag.endswith((":int", ":float")) and len(node.value) > LONGEST_NUMBER:
            raise _problem(f"a number has {len(node.value)} characters", node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse duplicate keys, of which PyYAML silently keeps the last."""
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise _problem(f"'{key.value}' is given twice", key)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _problem(text: str, at: yaml.Event | yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=at.start_mark)
