"""What Qdrant keeps beside each vector, and conditions in its own filters. Knows no client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from qdrant_client import models

from amdim_clients.conditions import NUMBERS, PATH, Condition
from amdim_clients.facts import PictureFacts
from amdim_clients.keys import roots_of
from amdim_clients.pipeline import Record

# Everything a picture is at or below: its filters match whole words, no prefixes.
_ROOTS: Final = "roots"
_FACTS: Final = (*NUMBERS, "label")


def picture_payload(record: Record) -> dict[str, Any]:
    """What is kept of a picture; what is not known is left out."""
    facts = {name: value for name, value in asdict(record.facts).items() if value is not None}
    return {
        PATH: record.key,
        "content_hash": record.content_hash,
        _ROOTS: list(dict.fromkeys(roots_of(record.key))),
        **facts,
    }


def picture_facts(payload: Mapping[str, Any]) -> PictureFacts:
    """The facts that are kept of a picture."""
    return PictureFacts(**{name: payload.get(name) for name in _FACTS})


def below(root: str) -> models.Filter:
    """Pictures at or below a file, folder or pack."""
    trimmed = root.rstrip("/") or "/"
    return models.Filter(must=[_equals(_ROOTS, trimmed)])


def any_of(field: str, values: Sequence[str]) -> models.Filter:
    """Pictures whose field is one of the values."""
    match = models.MatchAny(any=list(values))
    return models.Filter(must=[models.FieldCondition(key=field, match=match)])


def where_filter(conditions: Iterable[Condition]) -> models.Filter | None:
    """Conditions as one filter, None where there are none."""
    must: list[Any] = []
    must_not: list[Any] = []
    for condition in conditions:
        translated = _translated(condition)
        if condition.op != "!=":
            must.append(translated)
            continue
        must_not.append(translated)
        if condition.field != PATH:  # what is not known meets nothing
            empty = models.IsEmptyCondition(is_empty=models.PayloadField(key=condition.field))
            must_not.append(empty)
    if not must and not must_not:
        return None
    return models.Filter(must=must or None, must_not=must_not or None)


def _translated(condition: Condition) -> Any:
    """The condition, with `!=` as `=`."""
    if condition.field == PATH:
        return _equals(_ROOTS, str(condition.value).rstrip("/") or "/")
    if condition.op in ("=", "!="):
        return _equals(condition.field, condition.value)
    names = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}
    edge = models.Range(**{names[condition.op]: float(condition.value)})
    return models.FieldCondition(key=condition.field, range=edge)


def _equals(field: str, value: str | int) -> Any:
    return models.FieldCondition(key=field, match=models.MatchValue(value=value))
