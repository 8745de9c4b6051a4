import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amdim_training.checkpoint import load_checkpoint
from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.loss import infomax_loss

N = 8
SOURCES = torch.arange(N) % 25, (torch.arange(N) * 7) % 25

# Two processes run this: the loss and gradients of their halves, gathered.
WORKER = """
import sys
import torch
from amdim_training.distributed import joined
sys.path.insert(0, sys.argv[2])
from distributed_case import N, SOURCES, make_encoder, make_views
from amdim_training.loss import infomax_loss



def work(batch):
    encoder = make_encoder()
    spread = torch.nn.parallel.DistributedDataParallel(encoder, broadcast_buffers=False)
    rows = slice(batch.rank * N // 2, (batch.rank + 1) * N // 2)
    first, second = (view[rows] for view in make_views())
    sources = tuple(source[rows] for source in SOURCES)
    terms = infomax_loss(spread(first), spread(second), sources=sources, batch=batch)
    terms.total.backward()
    losses = batch.gather(torch.stack(terms).detach().unsqueeze(0)).mean(0)
    if batch.rank == 0:
        gradients = {name: p.grad for name, p in encoder.named_parameters()}
        torch.save({"losses": losses, "gradients": gradients}, sys.argv[1])


torch.set_num_threads(1)
with joined() as batch:
    work(batch)
"""

CASE = """
import torch
from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder

N = 8
SOURCES = torch.arange(N) % 25, (torch.arange(N) * 7) % 25


def make_encoder():
    torch.manual_seed(0)
    encoder = AmdimEncoder(EncoderConfig(image_size=32, width=4, embed_dim=16))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder.eval()  # batch norm aside: each process would see its half only


def make_views():
    return torch.randn(2, N, 3, 32, 32, generator=torch.Generator().manual_seed(1))
"""


def torchrun(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         *arguments],
        capture_output=True, text=True, timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_equal_one_on_the_joined_batch(tmp_path: Path) -> None:
    (tmp_path / "distributed_case.py").write_text(CASE)
    (tmp_path / "worker.py").write_text(WORKER)
    done = torchrun(str(tmp_path / "worker.py"), str(tmp_path / "result.pt"), str(tmp_path))
    assert done.returncode == 0, done.stderr
    got = torch.load(tmp_path / "result.pt", weights_only=True)

    torch.manual_seed(0)
    encoder = AmdimEncoder(EncoderConfig(image_size=32, width=4, embed_dim=16))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    encoder.eval()
    first, second = torch.randn(2, N, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    terms = infomax_loss(encoder(first), encoder(second), sources=SOURCES)
    terms.total.backward()
    torch.testing.assert_close(got["losses"], torch.stack(terms).detach())
    worst = 0.0
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(
            got["gradients"][name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name
        )
        worst = max(worst, (got["gradients"][name] - parameter.grad).abs().max().item())
    print(f"two processes against one: worst gradient difference {worst:.1e}")


@pytest.mark.slow
def test_a_run_over_two_processes_trains_saves_and_goes_on(tmp_path: Path, write_pack) -> None:
    pack, out = write_pack(count=40), tmp_path / "run"
    config = tmp_path / "run.toml"
    config.write_text(
        f"[encoder]\nimage_size = 32\nwidth = 4\nembed_dim = 16\n[data]\n"
        f"train = [{json.dumps(str(pack))}]\n[optim]\nbatch_size = 8\nsteps = 4\n[run]\n"
        f'out = "{out}"\nlog_every = 1\ncache = "{tmp_path / "cache"}"\n'
    )
    for _ in range(2):  # the second call finds the run finished
        done = torchrun("-m", "amdim_clients.cli", "train", str(config))
        assert done.returncode == 0, done.stderr
    assert load_checkpoint(out).meta["step"] == 4
    lines = (out / "log.jsonl").read_text().splitlines()
    steps = [record for record in map(json.loads, lines) if record["event"] == "step"]
    assert [record["step"] for record in steps] == [1, 2, 3, 4]  # one process writes
    assert len(list((tmp_path / "cache").iterdir())) == 1
