"""The `amdim` command: finds the sub-commands the installed parts contribute and runs one.

A part contributes a command by an entry point in the group `amdim.commands`. Only the command
asked for is imported, so no command pays for another's dependencies. This module knows none of
the commands, and none of the errors they raise: an error meant for the user carries
`is_user_error = True` and `exit_code`.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import Annotated, NoReturn

import typer

DISTRIBUTION = "amdim-embed"
COMMAND_GROUP = "amdim.commands"

_SHOWN_FIRST = ("serve", "embed", "index", "search", "train", "evaluate", "export")

# Distributions whose import package has another name than their own.
_IMPORT_NAMES = {"faiss-cpu": "faiss", "grpcio": "grpc", "protobuf": "google", "pillow": "PIL"}

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and leaves by `SystemExit`.

    Args:
        argv: Arguments after the program's name; default those of the process.

    Raises:
        SystemExit: Always. 0 success; 1 an error the user can act on, told in one sentence;
            2 a usage error; 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        app = _build_app(_named_command(arguments))
        app(args=arguments, prog_name="amdim")
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _build_app(wanted: str | None) -> typer.Typer:
    """Returns an application of the one command wanted, or of all of them to list."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Image embeddings: train an encoder, export it, serve it, search with it.",
    )
    app.callback()(_root)
    entries = _command_entries()
    shown = [wanted] if wanted in entries else list(entries)
    for name in shown:
        app.command(name)(_load_command(entries[name]))
    return app


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and leave."
        ),
    ] = False,
) -> None:
    """Takes the options that stand before a command."""


def _named_command(arguments: Sequence[str]) -> str | None:
    """Returns the first argument that is no option: the root's own options take no value."""
    return next((argument for argument in arguments if not argument.startswith("-")), None)


def _command_entries() -> dict[str, metadata.EntryPoint]:
    """Returns the contributed commands by name, in the order help shows them."""
    entries = {entry.name: entry for entry in metadata.entry_points(group=COMMAND_GROUP)}
    first = [name for name in _SHOWN_FIRST if name in entries]
    return {name: entries[name] for name in [*first, *sorted(entries.keys() - set(first))]}


def _load_command(entry: metadata.EntryPoint) -> Callable[..., object]:
    """Imports a command, or stands in for one whose dependencies are missing."""
    try:
        command: Callable[..., object] = entry.load()
    except (ImportError, AttributeError) as error:
        return _stand_in(entry.name, error)

    @functools.wraps(command)
    def run(*args: object, **kwargs: object) -> object:
        try:
            return command(*args, **kwargs)
        except ModuleNotFoundError as error:
            _fail_for_missing_module(entry.name, error)
        except Exception as error:
            if not getattr(error, "is_user_error", False):
                raise
            typer.echo(f"amdim: {error}", err=True)
            raise typer.Exit(int(getattr(error, "exit_code", 1))) from error

    return run


def _stand_in(name: str, error: ImportError | AttributeError) -> Callable[[], None]:
    """Returns a command that is listed beside the sound ones and fails when run."""

    def run() -> None:
        if isinstance(error, ModuleNotFoundError):
            _fail_for_missing_module(name, error)
        raise error

    install = _install_command(name, error) if isinstance(error, ModuleNotFoundError) else None
    run.__doc__ = f"Not installed: {install}" if install else f"Broken: {error}"
    return run


def _fail_for_missing_module(command: str, error: ModuleNotFoundError) -> NoReturn:
    """Tells how to install what a command lacks; a module nobody declared is a fault of ours.

    Raises:
        typer.Exit: The module belongs to an extra.
        ModuleNotFoundError: It belongs to none.
    """
    install = _install_command(command, error)
    if install is None:
        raise error
    typer.echo(
        f"amdim: '{command}' needs the Python module {error.name}, which is not installed. "
        f"Install it with: {install}",
        err=True,
    )
    raise typer.Exit(1) from error


def _install_command(command: str, error: ModuleNotFoundError) -> str | None:
    """Returns the pip command that brings the missing module, None when no extra declares it."""
    root = (error.name or "").partition(".")[0]
    declared: dict[str, set[str]] = {}
    for extra, module in _extra_modules():
        declared.setdefault(extra, set()).add(module)
    fitting = [extra for extra, modules in declared.items() if root in modules and extra != "dev"]
    if not fitting:
        return None
    # The extra named like the command, else the smallest that brings the module.
    extra = min(fitting, key=lambda name: (name != command, len(declared[name])))
    if extra == "serve" and find_spec("onnxruntime") is None:
        extra = "serve,cpu"  # a server without an engine would only fail at the next step
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def _extra_modules() -> Iterator[tuple[str, str]]:
    """Yields (extra, import name) of every optional requirement in the package's metadata."""
    for requirement in metadata.requires(DISTRIBUTION) or []:
        extra = re.search(r"""extra\s*==\s*['"]([^'"]+)['"]""", requirement)
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        if extra and name:
            distribution = name.group().lower()
            yield extra.group(1), _IMPORT_NAMES.get(distribution, distribution.replace("-", "_"))


if __name__ == "__main__":
    main()
