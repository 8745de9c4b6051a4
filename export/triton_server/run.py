"""Becomes the pinned Triton server of .venv/triton on a model repository.

Run with .venv/triton/bin/python; flags that it does not know are tritonserver's. Standard library
only. The server listens on the loopback address and takes its models' code
(`amdim_clients.images`) from this checkout.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).resolve().with_name("stand_in.py")
STOOD_IN_FOR = ("onnxruntime", "openvino")


def main() -> None:
    """Prepares the backends and replaces this process by the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path, nargs="?", default=ROOT / "model_repository")
    parser.add_argument("--port", type=int, default=8100, help="HTTP; gRPC +1, metrics +2")
    parser.add_argument("--explicit", action="store_true", help="load models on request only")
    options, flags = parser.parse_known_args()

    site = Path(sysconfig.get_path("purelib"))
    triton = site / "pytriton" / "tritonserver"
    backends = prepare_backends(triton, ROOT / ".venv" / f"triton-run-{options.port}")
    region = f"amdim_triton_{options.port}_"
    for left in Path("/dev/shm").glob(f"{region}*"):  # of a server that was killed
        left.unlink(missing_ok=True)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        # the backend's stub looks for its Python on PATH
        "PATH": f"{sysconfig.get_path('scripts')}:{os.environ.get('PATH', '')}",
        "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR"),
        "PYTHONDONTWRITEBYTECODE": "1",  # published versions stay as they are
    }
    command = [
        str(triton / "bin" / "tritonserver"),
        f"--model-repository={options.repository.resolve()}",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={region}",
        f"--cache-directory={triton / 'caches'}",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        f"--http-port={options.port}",
        f"--grpc-port={options.port + 1}",
        f"--metrics-port={options.port + 2}",
        "--allow-gpu-metrics=false",
        "--exit-timeout-secs=10",
        f"--model-control-mode={'explicit' if options.explicit else 'none'}",
        *flags,
    ]
    sys.stdout.flush()
    os.execve(command[0], command, environment)


def prepare_backends(triton: Path, folder: Path) -> Path:
    """Returns a folder of Triton's Python backend and of this project's stand-ins."""
    shutil.rmtree(folder, ignore_errors=True)
    python = folder / "python"
    python.mkdir(parents=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    # the library must be a copy and the stub a link: each looks for its neighbours by its own path
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copy2(triton / "backends" / "python" / name, python / name)
    stub = "triton_python_backend_stub"
    (python / stub).symlink_to(triton / "python_backend_stubs" / version / stub)
    for backend in STOOD_IN_FOR:
        (folder / backend).mkdir()
        shutil.copy2(STAND_IN, folder / backend / "model.py")
    return folder


if __name__ == "__main__":
    main()
