"""Protobuf's text format, written: fields, blocks and quoted strings.

Knows no Triton; tests parse the text back with protobuf itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Union

Value = Union[str, int, bool, "Enum", Mapping[str, "Value"], Iterable["Value"]]


class Enum(str):
    """A word written without quotes."""

    __slots__ = ()


def to_pbtxt(fields: Mapping[str, Value]) -> str:
    """Returns a message's text; a list repeats its field, a mapping is a message of its own."""
    return "".join(_lines(fields, ""))


def _lines(fields: Mapping[str, Value], indent: str) -> Iterable[str]:
    for name, value in fields.items():
        if isinstance(value, str | int | Mapping):
            yield from _field(name, value, indent)
        else:
            for item in value:
                yield from _field(name, item, indent)


def _field(name: str, value: Value, indent: str) -> Iterable[str]:
    if isinstance(value, Mapping):
        if not value:
            yield f"{indent}{name} {{}}\n"
            return
        yield f"{indent}{name} {{\n"
        yield from _lines(value, indent + "  ")
        yield f"{indent}}}\n"
    elif isinstance(value, bool):
        yield f"{indent}{name}: {'true' if value else 'false'}\n"
    elif isinstance(value, Enum | int):
        yield f"{indent}{name}: {value}\n"
    else:
        yield f"{indent}{name}: {_quoted(str(value))}\n"


def _quoted(text: str) -> str:
    """Returns a string literal: UTF-8, everything but plain ASCII as octal escapes."""
    plain = {ord("\\"): "\\\\", ord('"'): '\\"', ord("\n"): "\\n"}
    return (
        '"'
        + "".join(
            plain.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}")
            for byte in text.encode()
        )
        + '"'
    )
