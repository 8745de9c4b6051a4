"""What AMDIM's objective is worth: SimCLR and MoCo with its encoder, data, views and CPU time.

    python benchmarks/objectives.py --objective simclr --out runs/simclr
    python benchmarks/encoder_quality.py --rows model --model runs/simclr --name simclr

Each objective gets so much CPU time of its own process, all threads counted (other work beside it
costs it none, but slows every second of it alike: run those to be compared together), at a rate
that rises over 100 updates and falls to zero over the last 30 % of the time. Decoding and scoring
are not counted; drawing views and a second encoder are.

`--out` gets the checkpoint, which is scored like any other, `log.jsonl` with the losses, and
`result.json`: kNN k = 20 and 5, T = 0.07, of 2,000 val images among 20,000 training images. SimCLR
and MoCo train the global vector alone, so `embedding`, whose two other scales they leave as they
were drawn, is scored for all three beside it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import torch
from contrast import Amdim, MoCo, Objective, SimCLR, trained_parameters

from amdim_clients.images import Preprocess
from amdim_training.allocator import keep_freed_memory
from amdim_training.checkpoint import save_checkpoint
from amdim_training.config import EncoderConfig, OptimConfig, Precision
from amdim_training.data import load_images
from amdim_training.encoder import AmdimEncoder
from amdim_training.evaluate import evaluate
from amdim_training.evaluation_data import open_dataset
from amdim_training.features import open_encoder
from amdim_training.optimizer import make_adam
from amdim_training.precision import autocast, choose_precision
from amdim_training.views import VIEWS, draw_pair

ROOT = Path(__file__).resolve().parents[1]
PACKS = ("tiny_imagenet_200.parquet", "tiny_imagenet_200_rest_of_train.parquet")
WARMUP = 100
DECAY = 0.3
LOG_EVERY = 50
CPU = torch.device("cpu")


def main(argv: list[str] | None = None) -> int:
    """Trains one objective, scores its encoder and says both."""
    options = _options(argv)
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    encoder = AmdimEncoder(EncoderConfig(64, options.width, options.dim, options.depth)).train()
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loss = make_objective(options.objective, encoder)
    images = load_images([options.data / name for name in PACKS], Preprocess(64, 64))
    options.out.mkdir(parents=True)
    with (options.out / "log.jsonl").open("w", encoding="utf-8") as log:
        step, precision = train(encoder, loss, torch.from_numpy(images.pixels), options, log)
    meta = {
        "command": shlex.join(["python", "benchmarks/objectives.py", *(argv or sys.argv[1:])]),
        "step": step,
        "objective": options.objective,
        "batch": options.batch,
        "pairs": step * options.batch,
        "cpu_minutes": options.cpu_minutes,
        "precision": precision,
    }
    folder = save_checkpoint(
        options.out / f"step-{step:08d}", encoder, VIEWS["stl10"].normalization, meta=meta
    )
    found = evaluate(
        open_encoder(folder),
        [open_dataset(str(options.data / PACKS[0]))],
        protocols=["knn"],
        features=["global", "embedding"],
        gallery_limit=20_000,
        query_limit=2_000,
    )
    result = meta | {"knn": {score.features: dict(score.metrics) for score in found.scores}}
    (options.out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


def make_objective(name: str, encoder: AmdimEncoder) -> Objective:
    """Returns an objective by name."""
    if name == "simclr":
        return SimCLR(encoder.config.embed_dim)
    return MoCo(encoder) if name == "moco" else Amdim()


def train(
    encoder: AmdimEncoder,
    loss: Objective,
    pixels: torch.Tensor,
    options: argparse.Namespace,
    log: object,
) -> tuple[int, Precision]:
    """Updates until the CPU time is spent; returns how often, and at which precision."""
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = make_adam(
        trained_parameters(encoder, loss), OptimConfig(learning_rate=options.rate)
    )

    def backward(precision: Precision) -> float:
        rows = torch.randint(len(pixels), (options.batch,), generator=generator)
        first, second = (
            view.contiguous(memory_format=torch.channels_last)
            for view in draw_pair(pixels[rows], 64, VIEWS["stl10"], generator)
        )
        optimizer.zero_grad(set_to_none=True)
        with autocast(CPU, precision):
            features = encoder(first), encoder(second)
            targets = loss.targets((first, second))
        total = loss(*features, targets)
        total.backward()
        return float(total.detach())

    precision = choose_precision(options.precision, backward)
    begun, budget, step, losses = time.process_time(), options.cpu_minutes * 60.0, 0, 0.0
    while (spent := time.process_time() - begun) < budget:
        share = min(1.0, (step + 1) / WARMUP, (1.0 - spent / budget) / DECAY)
        for group in optimizer.param_groups:
            group["lr"] = options.rate * share
        losses += backward(precision)
        optimizer.step()
        loss.after_update(encoder)
        step += 1
        if step % LOG_EVERY == 0:
            record = {"step": step, "loss": losses / LOG_EVERY, "cpu_s": round(spent, 1)}
            print(json.dumps(record), file=log, flush=True)  # type: ignore[call-overload]
            losses = 0.0
    encoder.eval()
    return step, precision


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--objective", choices=["amdim", "simclr", "moco"], required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cpu-minutes", type=float, default=20.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
