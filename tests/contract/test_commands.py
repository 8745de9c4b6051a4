from __future__ import annotations

import inspect
from importlib import metadata

import pytest

PROMISED = {"serve", "embed", "index", "search", "train", "evaluate", "export"}
COMMANDS = sorted(
    found.name
    for found in metadata.distribution("amdim-embed").entry_points
    if found.group == "amdim.commands"
)


def entry(group: str, name: str) -> metadata.EntryPoint:
    (found,) = metadata.entry_points(group=group, name=name)
    return found


def test_every_promised_command_is_contributed() -> None:
    assert set(COMMANDS) >= PROMISED


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_contributed_with_a_line_of_help(name: str) -> None:
    command = entry("amdim.commands", name).load()
    assert inspect.isfunction(command)
    first = (inspect.getdoc(command) or "").partition("\n")[0]
    assert first.endswith(".")
    assert len(first) <= 90


@pytest.mark.parametrize("name", COMMANDS)
def test_each_option_of_a_command_is_explained(name: str) -> None:
    command = entry("amdim.commands", name).load()
    signature = inspect.signature(command, eval_str=True)
    for parameter in signature.parameters.values():
        markers = getattr(parameter.annotation, "__metadata__", ())
        assert any(getattr(marker, "help", None) for marker in markers), parameter.name


def test_the_local_engine_is_contributed() -> None:
    assert callable(entry("amdim.engines", "local").load())


@pytest.mark.parametrize(
    ("module", "error"),
    [
        ("amdim_clients.errors", "ClientError"),
        ("amdim_serving.errors", "ServingError"),
        ("amdim_training.errors", "TrainingError"),
        ("amdim_export.errors", "ExportError"),
    ],
)
def test_each_base_error_is_one_the_command_line_tells(module: str, error: str) -> None:
    base = getattr(__import__(module, fromlist=[error]), error)
    assert issubclass(base, Exception)
    assert base.is_user_error is True
    assert base.exit_code == 1
