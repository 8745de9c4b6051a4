from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pip
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def version(repo_root: Path) -> str:
    pins = (repo_root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    (found,) = (pin.removeprefix("torch==") for pin in pins if pin.startswith("torch=="))
    return found


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter of an environment that holds pip and nothing else."""
    folder = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "pip").symlink_to(Path(pip.__file__).parent)
    return folder / "bin" / "python"


@pytest.fixture
def offered(tmp_path: Path) -> Path:
    """A folder of wheels, all that pip can reach."""
    folder = tmp_path / "offered"
    folder.mkdir()
    return folder


def offer(folder: Path, name: str, version: str, *, requires: tuple[str, ...] = ()) -> None:
    """Writes a wheel that holds nothing but its metadata."""
    stem = f"{name.replace('-', '_')}-{version}"
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", "\n".join(lines) + "\n")
        wheel.writestr(
            f"{stem}.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


def install(
    root: Path, python: Path, offered: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    pip_sees_only = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(offered),
    }
    return subprocess.run(
        ["bash", str(root / "scripts" / "install_torch.sh"), str(python)],
        env={**os.environ, **pip_sees_only, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def installed(python: Path) -> str | None:
    script = (
        "from importlib import metadata\n"
        "print(*(d.version for d in metadata.distributions() if d.name == 'torch'))"
    )
    done = subprocess.run([str(python), "-c", script], check=True, capture_output=True, text=True)
    return done.stdout.strip() or None


@pytest.mark.skipif(sys.platform == "darwin", reason="the Mac's builds carry no +cpu")
def test_the_cpu_build_is_taken_where_it_is_offered(
    repo_root: Path, python: Path, offered: Path, version: str
) -> None:
    offer(offered, "torch", f"{version}+cpu")
    offer(offered, "torch", version, requires=("nvidia-cublas",))
    done = install(repo_root, python, offered)
    assert done.returncode == 0, done.stderr
    assert installed(python) == f"{version}+cpu"


def test_cuda_is_refused_with_the_way_out(
    repo_root: Path, python: Path, offered: Path, version: str
) -> None:
    offer(offered, "torch", version, requires=("nvidia-cublas", "triton"))
    offer(offered, "nvidia-cublas", "13.0")
    offer(offered, "triton", "3.5")
    done = install(repo_root, python, offered)
    assert done.returncode == 1
    assert "brings 2 CUDA packages" in done.stderr
    assert "AMDIM_ALLOW_CUDA_TORCH=1" in done.stderr
    assert installed(python) is None


def test_cuda_is_installed_when_it_is_allowed(
    repo_root: Path, python: Path, offered: Path, version: str
) -> None:
    offer(offered, "torch", version, requires=("nvidia-cublas",))
    offer(offered, "nvidia-cublas", "13.0")
    done = install(repo_root, python, offered, AMDIM_ALLOW_CUDA_TORCH="1")
    assert done.returncode == 0, done.stderr
    assert installed(python) == version


def test_a_default_build_without_cuda_is_taken(
    repo_root: Path, python: Path, offered: Path, version: str
) -> None:
    offer(offered, "torch", version)
    done = install(repo_root, python, offered, AMDIM_TORCH_CPU_INDEX="")
    assert done.returncode == 0, done.stderr
    assert installed(python) == version


def test_another_version_is_never_taken(
    repo_root: Path, python: Path, offered: Path, version: str
) -> None:
    offer(offered, "torch", "2.99.0+cpu")
    assert install(repo_root, python, offered).returncode != 0
    assert installed(python) is None


def test_nothing_is_asked_for_where_it_is_installed(
    repo_root: Path, python: Path, offered: Path, version: str
) -> None:
    offer(offered, "torch", version)
    install(repo_root, python, offered, AMDIM_TORCH_CPU_INDEX="")
    done = install(repo_root, python, offered)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
