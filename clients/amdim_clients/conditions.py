"""Conditions that answers must meet, and whether a picture meets them.

One small language for every store: `bytes>100000`, `modified>=2025-01-31`, `width>=640`,
`label=cat`, `path=/photos/2025`. Stores translate conditions; here they are only read and tried.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from amdim_clients.errors import ConditionError
from amdim_clients.facts import PictureFacts
from amdim_clients.keys import is_below

PATH: Final = "path"
LABEL: Final = "label"
MODIFIED: Final = "modified"
NUMBERS: Final = ("bytes", MODIFIED, "width", "height")
FIELDS: Final = (PATH, LABEL, *NUMBERS)

_COMPARE: Final[Mapping[str, Callable[[Any, Any], bool]]] = MappingProxyType(
    {
        "=": operator.eq,
        "!=": operator.ne,
        "<": operator.lt,
        "<=": operator.le,
        ">": operator.gt,
        ">=": operator.ge,
    }
)
_SYNTAX: Final = re.compile(r"\s*(\w+)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*", re.DOTALL)


@dataclass(frozen=True)
class Condition:
    """One comparison; `path` with `=` means the file, folder or pack, and all below it."""

    field: str  # one of FIELDS
    op: str  # = != < <= > >=
    value: str | int

    def __post_init__(self) -> None:
        """Refuse what means nothing.

        Raises:
            ConditionError: Field, operator and value do not go together.
        """
        if self.field not in FIELDS:
            raise ConditionError(f"no field {self.field}: use one of {', '.join(FIELDS)}")
        if self.op not in _COMPARE or (self.field not in NUMBERS and self.op not in ("=", "!=")):
            raise ConditionError(f"{self.field} can only be compared by = and !=, not {self.op}")

    def holds(self, key: str, facts: PictureFacts) -> bool:
        """Whether a picture meets it; what is not known meets nothing."""
        if self.field == PATH:
            return is_below(key, str(self.value)) == (self.op == "=")
        value = getattr(facts, self.field)
        return value is not None and _COMPARE[self.op](value, self.value)


def all_hold(conditions: Iterable[Condition], key: str, facts: PictureFacts) -> bool:
    """Whether a picture meets every condition."""
    return all(condition.holds(key, facts) for condition in conditions)


def parse_conditions(texts: Iterable[str]) -> tuple[Condition, ...]:
    """Conditions as the command line takes them.

    Raises:
        ConditionError: One is not a field, an operator and a value that go together.
    """
    return tuple(_parse(text) for text in texts)


def _parse(text: str) -> Condition:
    found = _SYNTAX.fullmatch(text)
    if found is None or not found[3]:
        raise ConditionError(f"{text!r} is no condition like bytes>100000 or label=cat")
    field, op, value = found.groups()
    if field == PATH:
        return Condition(field, op, str(Path(value).resolve()))
    if field == MODIFIED:
        return Condition(field, op, _seconds(value))
    if field in NUMBERS:
        if not value.isascii() or not value.isdigit():
            raise ConditionError(f"{field} is compared with a whole number, not with {value!r}")
        return Condition(field, op, int(value))
    return Condition(field, op, value)


def _seconds(text: str) -> int:
    """A date or a time of ISO 8601 in seconds since 1970; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConditionError(f"{text!r} is no date like 2025-01-31") from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
