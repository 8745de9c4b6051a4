"""What an engine was built for, kept beside it: on anything else it is refused, not tried.

A TensorRT engine runs only with the version that built it and on the GPU architecture it was
built on. Standard library only, so that an engine can be refused where neither is installed.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from amdim_export.errors import EngineError
from amdim_export.fingerprint import artifact_digest
from amdim_export.names import FORMAT

ENGINE_FILE = "engine.json"
_REBUILD = "build one here with `amdim export CHECKPOINT --target tensorrt`"


@dataclasses.dataclass(frozen=True, slots=True)
class EngineFacts:
    """One engine.

    Attributes:
        artifact_digest: Of the engine's bytes.
        onnx_digest: Of the graph it was built from.
        tensorrt: The version that built it.
        sm: The GPU's compute capability, as in "9.0".
        gpu: The GPU's name, for people.
        precision: What it computes in.
        batches: Smallest, best and largest batch of each profile.
    """

    artifact_digest: str
    onnx_digest: str
    tensorrt: str
    sm: str
    gpu: str
    precision: str
    batches: tuple[tuple[int, int, int], ...]

    def to_json(self) -> str:
        """Returns the facts as they lie beside the engine."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"

    def require_unchanged(self, engine: Path) -> None:
        """Refuses an engine whose bytes are not those that were built.

        Raises:
            EngineError: The file is missing or another.
        """
        try:
            digest = artifact_digest(engine)
        except OSError as error:
            raise EngineError(f"no engine at {engine}") from error
        if digest != self.artifact_digest:
            raise EngineError(f"{engine} has digest {digest}, built was {self.artifact_digest}")

    def require_machine(self, *, tensorrt: str, sm: str) -> None:
        """Refuses a machine of another TensorRT or another GPU architecture.

        Raises:
            EngineError: Says what was built for what.
        """
        if tensorrt != self.tensorrt:
            raise EngineError(
                f"the engine was built by TensorRT {self.tensorrt} and here is {tensorrt}: "
                f"{_REBUILD}"
            )
        if sm != self.sm:
            raise EngineError(
                f"the engine was built on a GPU of compute capability {self.sm} ({self.gpu}) "
                f"and here is {sm}: {_REBUILD}"
            )


def read_engine_facts(version_folder: Path) -> EngineFacts:
    """Returns what the engine of a published version was built for.

    Raises:
        EngineError: The file is missing, broken or of another format.
    """
    path = version_folder / ENGINE_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"{path} cannot be read as JSON") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise EngineError(f"{path} does not describe an engine in format {FORMAT}")
    try:
        batches = tuple((int(a), int(b), int(c)) for a, b, c in values.pop("batches"))
        facts = EngineFacts(**{name: str(value) for name, value in values.items()}, batches=batches)
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"{path} is missing or breaks a value: {error}") from error
    return facts


def engine_file_name(sm: str) -> str:
    """Returns an engine's file name, which names its architecture.

    Triton's configuration maps the architecture to it and has no other file to fall back to, so
    that a Triton on another GPU does not load the model.
    """
    return f"model.sm{sm.replace('.', '')}.plan"
