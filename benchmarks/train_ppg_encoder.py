"""Train `ppg-encoder`: `python benchmarks/train_ppg_encoder.py --out DIR --save DIR`.

The recipe of `tsfm.training.participant_contrast` on one optical channel, 20 seconds at 64 Hz, with
people that are simulated (`tsfm.simulation.ppg_participants`): every step meets people that no
other step met, two segments of each. The published recipe has segments of 60 seconds, four optical
channels, 256 real participants a batch and trains far longer; this is what a quarter of an hour of
one core gives.

Student or teacher is chosen by how often a segment's nearest other is of the same person, among
simulated people that training does not draw. Nothing is chosen on recordings of real people. A run
that was stopped goes on when it is started again. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from measure import machine_line
from torch import Tensor, nn
from tqdm import tqdm

from tsfm.kernels.heap import keep_freed_memory
from tsfm.models.efficientnet1d import (
    EMBEDDING_WIDTH,
    EfficientNet1d,
    EfficientNet1dConfig,
    standardise,
)
from tsfm.models.ppg_contrastive import ParticipantContrast
from tsfm.models.ppg_encoder_checkpoint import SegmentSpec, save_ppg_encoder
from tsfm.simulation.ppg_participants import simulate_cohort
from tsfm.training.checkpoints import load_checkpoint, save_checkpoint
from tsfm.training.loop import fingerprint
from tsfm.training.optimizer import WeightAverage
from tsfm.training.participant_contrast import (
    ParticipantContrastConfig,
    contrast_step,
    embed_segments,
    participant_retrieval,
)
from tsfm.training.signal_augmentations import augment

MODEL = EfficientNet1dConfig(n_channels=1, expansion=7)
SEGMENTS = SegmentSpec(fs_hz=64.0, duration_s=20.0)
HOW = ParticipantContrastConfig(n_steps=450, n_participants_per_batch=32, halve_every=150)
VALIDATION_SEED, VALIDATION_PEOPLE, VALIDATION_SEGMENTS = 990_001, 100, 4
SAVE_EVERY = 50


def train(
    model: EfficientNet1dConfig,
    how: ParticipantContrastConfig,
    segments: SegmentSpec,
    folder: Path,
    stop_after: int | None = None,
) -> tuple[ParticipantContrast, list[float], float]:
    """Train student and teacher, or go on from the folder's checkpoint.

    Args:
        model: Sizes of the encoder.
        how: How to train; each step draws everything from its seed and the step's number.
        segments: Rate and length of the segments.
        folder: For the checkpoint.
        stop_after: Stop at this step, to go on another time.

    Returns:
        Both networks, the loss at each step, and the processor's seconds.
    """
    torch.manual_seed(how.seed)
    objective = ParticipantContrast(EfficientNet1d(model), EMBEDDING_WIDTH, how.contrast)
    learned = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=how.lr, weight_decay=how.weight_decay)
    # The teacher is the average of the weights, and is kept with the student; there is no other.
    nothing = WeightAverage(nn.Identity(), 0.0)
    made_of = fingerprint(asdict(model), asdict(how), asdict(segments))
    checkpoint = folder / "checkpoint"
    losses, earlier_s = [], 0.0
    if checkpoint.exists():
        state, _ = load_checkpoint(
            checkpoint, fingerprint=made_of, model=objective, average=nothing, optimizer=optimizer
        )
        losses, earlier_s = state["losses"], state["seconds"]
    started = time.process_time()
    last = min(how.n_steps, stop_after or how.n_steps)
    bar = tqdm(range(len(losses), last), "contrast", disable=None, initial=len(losses),
               total=how.n_steps)  # fmt: skip
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = how.lr * 0.5 ** (step // how.halve_every)
        first, second, people = views(step, how, segments)
        loss = contrast_step(objective, optimizer, first, second, people)
        losses.append(float(loss.total))
        bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}")
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == last:
            seconds = earlier_s + time.process_time() - started
            state = {"fingerprint": made_of, "losses": losses, "seconds": seconds}
            save_checkpoint(
                checkpoint, model=objective, average=nothing, optimizer=optimizer, state=state
            )
            if bar.disable:
                print(f"step {step + 1}: loss {np.mean(losses[-SAVE_EVERY:]):.4f}, {seconds:.0f} s",
                      flush=True)  # fmt: skip
    return objective.eval(), losses, earlier_s + time.process_time() - started


def views(
    step: int, how: ParticipantContrastConfig, segments: SegmentSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """Two augmented segments of each of the people of a step, and their numbers.

    Args:
        step: Whose people; the same step draws the same ones.
        how: How many, and the augmentation.
        segments: Rate and length.
    """
    drawn, people = simulate_cohort(
        np.random.default_rng([how.seed, step]), n_participants=how.n_participants_per_batch,
        n_segments=2, fs_hz=segments.fs_hz, duration_s=segments.duration_s,
    )  # fmt: skip
    chance = torch.Generator().manual_seed(how.seed + step)
    standard = standardise(torch.from_numpy(drawn))
    first, second = (augment(standard[i::2], how.augmentation, generator=chance) for i in (0, 1))
    return first, second, torch.from_numpy(people[::2])


def validate(
    objective: ParticipantContrast, segments: SegmentSpec, n_people: int
) -> dict[str, float]:
    """Share of segments that find their person again, by student and by teacher.

    Args:
        objective: Both networks.
        segments: Rate and length.
        n_people: Simulated people of a seed of their own, `VALIDATION_SEGMENTS` each.
    """
    drawn, people = simulate_cohort(
        np.random.default_rng(VALIDATION_SEED), n_participants=n_people,
        n_segments=VALIDATION_SEGMENTS, fs_hz=segments.fs_hz, duration_s=segments.duration_s,
    )  # fmt: skip
    both = {"student": objective.backbone, "teacher": objective.teacher_backbone}
    return {
        name: participant_retrieval(embed_segments(backbone, drawn), people)
        for name, backbone in both.items()
    }


def main() -> None:
    """Train and write the weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--save", type=Path, help="model directory to write")
    parser.add_argument("--steps", type=int, default=HOW.n_steps, help="default: %(default)s")
    parser.add_argument("--people", type=int, default=HOW.n_participants_per_batch,
                        help="a step (default: %(default)s)")  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--stop-after", type=int, help="stop at this step, to go on another time")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()
    print(machine_line(), flush=True)
    steps, people, n_validation = chosen.steps, chosen.people, VALIDATION_PEOPLE
    model, segments = MODEL, SEGMENTS
    if chosen.quick:
        steps, people, n_validation = 3, 4, 6
        model, segments = EfficientNet1dConfig(1, 1), SegmentSpec(64.0, 8.0)
    how = replace(
        HOW, n_steps=steps, n_participants_per_batch=people, halve_every=max(1, steps // 3)
    )
    objective, losses, seconds = train(model, how, segments, chosen.out, chosen.stop_after)
    if len(losses) < how.n_steps:
        print(json.dumps({"steps": len(losses), "of": how.n_steps}))
        return
    found = validate(objective, segments, n_validation)
    better = max(found, key=lambda name: found[name])
    backbone = objective.backbone if better == "student" else objective.teacher_backbone
    assert isinstance(backbone, EfficientNet1d)
    last = float(np.mean(losses[-SAVE_EVERY:]))
    facts = {
        "data": "simulated people only (tsfm.simulation.ppg_participants); no recording of anybody",
        "command": f"benchmarks/train_ppg_encoder.py --steps {steps} --people {people}",
        "recipe": "participant contrast after Abbaspourazad et al. (ICLR 2024), one channel",
        "licence": "Apache-2.0", "page": "docs/benchmarks/ppg_embedding.md",
        "steps": steps, "people a step": people, "people in all": steps * people,
        "seed": how.seed, "minutes of one core": round(seconds / 60, 1),
        "mean loss of the last steps": round(last, 4), "weights": f"of the {better}",
        f"same person nearest, {n_validation} simulated people kept apart":
            round(found[better], 4),
        "real people": "no weight and no choice comes from one; see the page for what that costs",
    }  # fmt: skip
    size_mb = None
    if chosen.save is not None:
        save_ppg_encoder(chosen.save, backbone, segments=segments, facts=facts, half=True)
        size_mb = round(sum(f.stat().st_size for f in chosen.save.iterdir()) / 1e6, 2)
    answer = {
        "loss": round(last, 4), "retrieval": {n: round(v, 4) for n, v in found.items()},
        "weights": better, "steps": len(losses), "seconds": round(seconds, 1), "size_mb": size_mb,
    }  # fmt: skip
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
