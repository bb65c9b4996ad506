"""Trains the demo model from nothing: `python -m tools.train_demo.train`.

Both families take two hours or so on two processor cores: the sum of steps, not timed as a whole. Training climbs a
ladder of grids, small first:
the decoder's weights do not depend on the grid, and a prompt costs a quarter on half the grid. Stages are measured
in minutes, so that a busy machine takes no longer but gets less far; a run that was stopped goes on where it was.
The SAM 2 model starts from the trained SAM 1 model.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn

from samx.demo import demo_checkpoint
from samx.demo.model import DemoModel, grow_to_sam2, head_start, save_demo
from samx.demo.sampling import find_regions
from tools.train_demo.batches import EncoderHints, Sample, batch_loss
from tools.train_demo.evaluate import evaluate_model
from tools.train_demo.pool import ScenePool

WORKERS = 2
POOL_SCENES = 5000
VALIDATION_SEEDS = range(500_000, 500_024)
REPORT_MINUTES, SAVE_MINUTES = 2.0, 2.0
WARM_UP_STEPS = 60
WEIGHT_DECAY = 0.02
MOST_GRADIENT = 1.0
HINT_WEIGHT = 0.3
PARTS = ("model", "averaged", "hints", "optimiser")  # of a trainer, that a stopped run goes on with
ENCODER_RATE = 2.5  # the encoder learns this much faster than the decoder


@dataclass(frozen=True)
class Stage:
    """Describe one rung of the ladder."""

    family: str
    grid: int
    minutes: float
    images: int  # of one worker: there are two, so that none waits for the other within a step
    counts: tuple[int, int, int, int]  # clicks, boxes, several points and corrections an image
    crop: tuple[float, float]  # how much of a scene's side a frame shows
    rates: tuple[float, float]  # learning rate at the start and at the end
    average: float  # how slowly the averaged weights follow
    more_pictures: int  # that only the encoder sees, with its hints: it learns cheaply, the decoder does not
    after: int | None = None  # the stage that it starts from, by number; none: the one before it


STAGES = (
    Stage("sam1", 8, 4.0, 3, (3, 2, 1, 2), (0.3, 0.7), (6e-4, 5e-4), 0.99, 4),
    Stage("sam1", 16, 19.5, 3, (3, 2, 1, 1), (0.5, 1.0), (6e-4, 2e-4), 0.998, 4),
    Stage("sam1", 32, 23.0, 2, (2, 2, 1, 1), (0.6, 1.0), (4e-4, 1e-4), 0.995, 6),
    Stage("sam1", 64, 13.0, 1, (2, 2, 0, 1), (0.85, 1.0), (1.5e-4, 2e-5), 0.98, 2),
    Stage("sam2", 32, 10.5, 2, (2, 2, 1, 1), (0.6, 1.0), (4e-4, 1e-4), 0.99, 8),
    Stage("sam2", 64, 11.0, 1, (2, 2, 0, 1), (0.85, 1.0), (1.5e-4, 2e-5), 0.98, 2),
    # Each family once more from a higher rate: the decoder is not finished after one descent.
    Stage("sam1", 32, 18.5, 2, (2, 2, 1, 1), (0.7, 1.0), (3e-4, 3e-5), 0.995, 6, after=3),
    Stage("sam1", 64, 5.5, 1, (2, 2, 0, 1), (0.85, 1.0), (1e-4, 2e-5), 0.98, 2),
    Stage("sam2", 32, 13.5, 2, (2, 2, 1, 1), (0.7, 1.0), (3e-4, 3e-5), 0.995, 6, after=5),
    Stage("sam2", 64, 4.0, 1, (2, 2, 0, 1), (0.85, 1.0), (1e-4, 2e-5), 0.98, 2),
)


class Trainer:
    """Hold a model, its averaged copy and its optimiser while one stage runs."""

    def __init__(self, stage: Stage, model: DemoModel, hints: EncoderHints, seed: int) -> None:
        self.stage, self.model, self.hints = stage, model, hints
        self.averaged = copy.deepcopy(model)
        fast = [*model.encoder.parameters(), *hints.parameters()]
        self.optimiser = torch.optim.AdamW(
            [{"params": list(model.decoder.parameters()), "speed": 1.0}, {"params": fast, "speed": ENCODER_RATE}],
            lr=0.0, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY,
        )  # fmt: skip
        self.rng = np.random.default_rng((seed, 0, distributed.get_rank()))
        self.began = time.monotonic()
        self.step, self.minutes, self.running, self.hint = 0, 0.0, math.nan, 0.0

    def rate(self) -> float:
        """Give the learning rate of now: a short warm-up, then half a cosine over the stage's minutes."""
        first, last = self.stage.rates
        done = min(self.minutes / self.stage.minutes, 1.0)
        wave = 0.5 * (1 + math.cos(math.pi * done))
        return min(1.0, (self.step + 1) / WARM_UP_STEPS) * (last + (first - last) * wave)

    def train_step(self, pool: ScenePool) -> None:
        """Draw a batch, go one step, let the averaged weights follow."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate() * group["speed"]
        loss = self._loss(pool)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._share_gradients()
        nn.utils.clip_grad_norm_([*self.model.parameters(), *self.hints.parameters()], MOST_GRADIENT)
        self.optimiser.step()
        self.step += 1
        self._follow()
        value = float(loss.detach())
        self.running = value if math.isnan(self.running) else 0.98 * self.running + 0.02 * value

    def _share_gradients(self) -> None:
        """Average gradients, and the time that a step took, over the workers, which so stay equal."""
        parameters = [*self.model.parameters(), *self.hints.parameters()]
        now = time.monotonic()
        minutes, self.began = torch.tensor([(now - self.began) / 60]), now
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([minutes, *(g.flatten() for g in gradients)])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        self.minutes += float(flat[0])
        for p, g in zip(parameters, flat[1:].split([g.numel() for g in gradients]), strict=True):
            p.grad = g.view_as(p)

    def _loss(self, pool: ScenePool) -> torch.Tensor:
        size_px = self.model.spec.mask_size
        pictures, samples = draw_batch(pool, self.rng, self.stage.images, size_px, self.stage.crop)
        features = self.model.encoder.encode_picture(pictures)
        loss: torch.Tensor = batch_loss(self.model, features, samples, self.rng, self.stage.counts)
        loss = loss + HINT_WEIGHT * self.hints(features[0], np.stack([sample.ids for sample in samples]))
        if self.stage.more_pictures:
            pictures, samples = draw_batch(pool, self.rng, self.stage.more_pictures, size_px, self.stage.crop)
            embedding = self.model.encoder.encode_picture(pictures)[0]
            hint = self.hints(embedding, np.stack([sample.ids for sample in samples]))
            self.hint = 0.95 * self.hint + 0.05 * float(hint.detach())
            loss = loss + hint
        return loss

    def _follow(self) -> None:
        slow = min(self.stage.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for old, new in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
                old.lerp_(new, 1 - slow)

    def state(self) -> dict[str, Any]:
        """Collect everything that a stopped run needs to go on."""
        return {
            **{part: getattr(self, part).state_dict() for part in PARTS}, "step": self.step, "minutes": self.minutes,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a collected state."""
        for part in PARTS:
            getattr(self, part).load_state_dict(state[part])
        self.step, self.minutes = state["step"], state["minutes"]
        self.rng = np.random.default_rng((self.step, 1, distributed.get_rank()))


def draw_batch(
    pool: ScenePool, rng: np.random.Generator, images: int, size_px: int, crop: tuple[float, float]
) -> tuple[torch.Tensor, list[Sample]]:
    """Draw pictures that show something. Shapes: -> (B, 3, S, S), B samples."""
    pictures: list[torch.Tensor] = []
    samples: list[Sample] = []
    while len(samples) < images:
        picture, ids = pool.sample(rng, size_px, crop)
        regions = find_regions(ids)
        if regions:
            pictures.append(torch.from_numpy(picture).permute(2, 0, 1))
            samples.append(Sample(ids, regions))
    return torch.stack(pictures), samples


def first_model(stage: Stage, folder: Path, index: int) -> tuple[DemoModel, EncoderHints]:
    """Start a stage from the one before it, or from nothing."""
    hints = EncoderHints()
    model = DemoModel(stage.family, stage.grid)
    if index == 0:
        head_start(model.decoder)
        return model, hints
    start = index - 1 if stage.after is None else stage.after
    state = torch.load(folder / f"stage_{start}.pt", weights_only=True)
    hints.load_state_dict(state["hints"])
    before = DemoModel(STAGES[start].family, STAGES[start].grid)
    before.load_state_dict(state["averaged"])
    if before.family != stage.family:
        return grow_to_sam2(before, stage.grid), hints
    model.load_state_dict(before.state_dict())
    return model, hints


def run_stage(index: int, folder: Path, weights: Path, pool: ScenePool) -> None:
    """Run one stage to its end, from its own saved state where there is one."""
    stage, path = STAGES[index], folder / f"stage_{index}.pt"
    torch.manual_seed(index)
    trainer = Trainer(stage, *first_model(stage, folder, index), seed=index)
    if path.exists():
        trainer.restore(torch.load(path, weights_only=True))
        if trainer.minutes >= stage.minutes:
            return
    reported = saved = trainer.minutes
    while trainer.minutes < stage.minutes:
        trainer.train_step(pool)
        if trainer.minutes - reported >= REPORT_MINUTES:
            reported = trainer.minutes
            report(index, trainer)
        if trainer.minutes - saved >= SAVE_MINUTES:
            saved = trainer.minutes
            _save(trainer, path)
    report(index, trainer)
    _save(trainer, path)
    if is_first_worker():
        save_demo(trainer.averaged, weights, {"grid": str(stage.grid), "stage": str(index), "steps": str(trainer.step)})
    distributed.barrier()


def is_first_worker() -> bool:
    """Tell whether this process is the one that reports and saves."""
    return distributed.get_rank() == 0


def _save(trainer: Trainer, path: Path) -> None:
    if not is_first_worker():
        return
    draft = path.with_suffix(".tmp")
    torch.save(trainer.state(), draft)
    os.replace(draft, path)


def report(index: int, trainer: Trainer) -> None:
    """Print how far the stage is, and mean IoUs on a few validation scenes."""
    if not is_first_worker():
        return
    seeds = VALIDATION_SEEDS[:8] if trainer.stage.grid == 64 else VALIDATION_SEEDS
    result = evaluate_model(trainer.averaged.eval(), seeds)
    scores = " ".join(f"{name} {row['mean']:.3f}" for name, row in result.items())
    levels = "/".join(f"{result['click_best_of_3'][level]:.2f}" for level in ("whole", "part", "subpart"))
    say(
        f"stage {index} {trainer.stage.family} grid {trainer.stage.grid} step {trainer.step} "
        f"{trainer.minutes:.1f}/{trainer.stage.minutes:.0f} min loss {trainer.running:.3f} "
        f"hint {trainer.hint:.3f} {scores} levels {levels}"
    )


def say(text: str) -> None:
    """Print with the time of day."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


def work(rank: int, port: int, folder: Path, out: Path | None, scenes: int) -> None:
    """Be one of the workers: all of them run every stage together, on one core each."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORKERS)
    pool = ScenePool(folder, scenes, say)
    for index, stage in enumerate(STAGES):
        shipped = demo_checkpoint(stage.family)
        run_stage(index, folder, (out or shipped.parent) / shipped.name, pool)
    distributed.destroy_process_group()


def main() -> None:
    """Train both families from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("demo_training"), help="scenes and resumable states")
    parser.add_argument("--out", type=Path, help="folder for the weights; the package's own by default")
    parser.add_argument("--scenes", type=int, default=POOL_SCENES)
    options = parser.parse_args()
    ScenePool(options.folder, options.scenes, say)
    port = _free_port()
    spawn(work, (port, options.folder, options.out, options.scenes), nprocs=WORKERS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
