# SPDX-License-Identifier: Apache-2.0
"""YAML values with their line numbers, so that every error message can name the line.

Rule 1: the type of a value depends on its key, never on a YAML tag or the form of the value. So
``mac: 52:54:00:12:34:56`` is a MAC and not a number of base 60, and ``id: 0123`` keeps its zero.
Rule 2: size and depth are limited. Aliases may refer to scalars only, because nested aliases expand a small file to a
huge document.
"""

from __future__ import annotations

import base64
import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass

import yaml

from metadata_wsgi.errors import ConfigError

MAX_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 32

_NULL = 'tag:yaml.org,2002:null'
_BINARY = 'tag:yaml.org,2002:binary'
# libyaml's loader is ten times as fast. Some builds of PyYAML do not have it.
_LOADER = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Value:
    """A value in the file at ``path``. ``what`` is the name of the value in error messages."""

    path: str
    node: yaml.Node
    what: str

    def error(self, reason: str) -> ConfigError:
        """A ConfigError about this value, for the caller to raise."""
        return ConfigError(f'{self.path}:{self.node.start_mark.line + 1}: {reason}')

    def text(self) -> str:
        """One line of text, exactly as in the file: ``0123`` and ``yes`` are text, and not a number or a boolean."""
        text = self.multiline().strip()
        if not text or not text.isprintable():
            raise self.error(f'{self.what} must be one line of text')
        return text

    def multiline(self) -> str:
        """Text with any number of lines."""
        if not isinstance(self.node, yaml.ScalarNode):
            raise self.error(f'{self.what} must be text, not a {_kind(self.node)}')
        if self.node.tag == _NULL and not self.node.value:
            raise self.error(f'{self.what} has no value')
        return str(self.node.value)

    def binary(self) -> bytes:
        """Text as UTF-8, or the decoded bytes of ``!!binary``."""
        text = self.multiline()
        if self.node.tag != _BINARY:
            return text.encode()
        try:
            return base64.b64decode(''.join(text.split()), validate=True)
        except ValueError as error:
            raise self.error(f'{self.what} is not base64: {error}') from None

    def list(self) -> list[Value]:
        """The entries of a list."""
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.error(f'{self.what} must be a list, not {_a(self.node)}')
        return [Value(self.path, node, f'an entry of {self.what}') for node in self.node.value]

    def pairs(self) -> dict[str, Value]:
        """The entries of a mapping, by key."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error(f'{self.what} must be a mapping of keys to values, not {_a(self.node)}')
        found: dict[str, Value] = {}
        for key_node, node in self.node.value:
            key = Value(self.path, key_node, f'a key of {self.what}')
            name = key.text()
            if name in found:
                raise key.error(f'{name} is twice in {self.what}')
            found[name] = Value(self.path, node, name)
        return found

    def record(self, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Value]:
        """The entries of a mapping with all keys of ``required`` and no keys but ``required`` and ``optional``."""
        found = self.pairs()
        known = [*required, *optional]
        for name in found:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                right = f'did you mean {close[0]}?' if close else f'the keys are {", ".join(known)}'
                raise self._key(name).error(f'{name} is not a key of {self.what}; {right}')
        for name in required:
            if name not in found:
                raise self.error(f'{name} is missing from {self.what}')
        return found

    def json(self) -> str:
        """The JSON text of a mapping with values of any JSON type."""
        self.pairs()
        constructor = yaml.SafeLoader('')
        try:
            return json.dumps(constructor.construct_document(self.node), allow_nan=False)
        except yaml.MarkedYAMLError as error:
            raise ConfigError(f'{self.path}:{_line(error)}: {self.what}: {error.problem}') from None
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            # PyYAML raises the last two for a scalar that does not match its tag, for example !!bool maybe.
            raise self.error(f'{self.what} cannot be written as JSON: {error}') from None
        finally:
            constructor.dispose()

    def _key(self, name: str) -> Value:
        node = next(key for key, _ in self.node.value if key.value == name)
        return Value(self.path, node, self.what)


def document(data: bytes, path: str) -> Value:
    """The YAML document in ``data``. Raises ConfigError ``path:line: reason`` if it is not valid.

    ``data`` must have exactly one document.
    """
    if len(data) > MAX_BYTES:
        raise ConfigError(f'{path}:1: the file has more than {MAX_BYTES} bytes; split the cloud or remove user_data')
    try:
        text = data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b'\n') + 1
        raise ConfigError(f'{path}:{line}: the file is not UTF-8') from None
    try:
        _check_bounds(text, path)
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        # Newer versions of libyaml also limit the depth. They read ahead and may reach their limit before ours.
        if error.problem and 'nesting' in error.problem:
            raise ConfigError(f'{path}:{_line(error)}: nested more than {MAX_DEPTH} deep') from None
        raise ConfigError(f'{path}:{_line(error)}: not YAML: {error.problem or error.context}') from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count('\n') + 1
        raise ConfigError(f'{path}:{line}: not YAML: {error.reason}') from None
    if node is None:
        raise ConfigError(f'{path}:1: the file is empty')
    return Value(path, node, 'the inventory')


def _check_bounds(text: str, path: str) -> None:
    """Raise ConfigError for deep nesting, and for aliases that do not refer to scalars.

    This check runs before the document is composed, because libyaml's composer is recursive: a deeply nested document
    would crash the process.
    """
    depth = 0
    scalars: set[str | None] = set()
    for event in yaml.parse(text, Loader=_LOADER):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            scalars.discard(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent):
            scalars.add(event.anchor)
        elif isinstance(event, yaml.AliasEvent) and event.anchor not in scalars:
            raise ConfigError(f'{path}:{line}: *{event.anchor} refers to no text above; only text may have aliases')
        if depth > MAX_DEPTH:
            raise ConfigError(f'{path}:{line}: nested more than {MAX_DEPTH} deep')


def _line(error: yaml.MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return mark.line + 1 if mark else 1


def _kind(node: yaml.Node) -> str:
    return 'list' if isinstance(node, yaml.SequenceNode) else 'mapping'


def _a(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        return f'a {_kind(node)}'
    return 'text' if node.value else 'nothing'
