"""How the command line tells about a training in this process, and about the score and speed of a network."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TextIO, TypeVar

from server.console import LINE_SECONDS, duration, table
from server.moving_line import MovingLine

if TYPE_CHECKING:
    from nas.config import Config
    from nas.space import SearchSpace
    from supernet.curves import Epoch
    from supernet.evaluation import Evaluation
    from supernet.pretrained import Names, Transfer
    from supernet.pretraining import Accuracy
    from supernet.recipe import RunRecipe
    from supernet.speed import Speed, Spread
    from supernet.training_run import Progress

S = TypeVar("S")


class TrainingTeller(Generic[S]):
    """Tells how far a training is: a line that moves on a terminal, plain lines anywhere else; or nothing."""

    def __init__(self, score_text: Callable[[S], str], out: TextIO | None = sys.stdout) -> None:
        """Tell on `out`, scores as `score_text` writes them."""
        self._score_text, self._line = score_text, MovingLine(out)
        self._told = time.monotonic()

    def begin(self, space: "SearchSpace", config: "Config", images: int, held_out: int, epochs: int) -> None:
        """Say which detector is trained on what."""
        from nas.macs import gmacs  # noqa: PLC0415

        self._line.say(
            f"training config {config.id} of {space.name}, {gmacs(space.blocks(config)):.2f} GMACs at {_size(config)}, "
            f"on {images} images, epochs: {epochs}; {held_out} held out"
        )

    def begin_backbone(
        self, space: "SearchSpace", config: "Config", images: int, held_out: int, classes: int, epochs: int
    ) -> None:
        """Say which backbone is trained on what."""
        from nas.macs import gmacs  # noqa: PLC0415
        from supernet.classifier import backbone_sites  # noqa: PLC0415

        cost = gmacs(site.block for site in backbone_sites(space.sites(config)))
        self._line.say(
            f"pretraining the backbone of config {config.id} of {space.name}, {cost:.2f} GMACs at {_size(config)}, "
            f"on {images} images of {classes} classes, epochs: {epochs}; {held_out} held out"
        )

    def schedule(self, recipe: "RunRecipe", images: int) -> None:
        """Say when the rate falls, and where a run is too short for the warm-up of its recipe."""
        if recipe.schedule == "steps":
            epochs = " and ".join(f"{milestone:.4g}" for milestone in recipe.milestones)
            self._line.say(
                f"rate {recipe.learning_rate:g}, falling to a tenth after epochs {epochs} of {recipe.epochs}"
            )
        epoch_steps = recipe.epoch_steps(images)
        wanted, warmup = recipe.wanted_warmup(epoch_steps), recipe.warmup(epoch_steps)
        if warmup < wanted:
            self._line.say(f"warm-up: {warmup} steps, half of this run, instead of the recipe's {wanted}")

    def transfer(self, found: "Transfer") -> None:
        """Say what was taken from a file of weights, and what was not."""
        origin = found.origin
        self._line.say(f"weights of {origin.file}: {origin.taken} tensors taken ({_counted(found.taken)})")
        if found.warning is not None:
            self._line.say(f"warning: {found.warning}")
        if origin.unfit:
            self._line.say(f"{origin.unfit} did not fit: {_named(found.unfit)}")
        if origin.missing:
            self._line.say(f"{origin.missing} not in the file, drawn anew ({_counted(found.missing)})")
        if origin.left_over:
            self._line.say(f"{origin.left_over} of the file left over ({_counted(found.left_over)})")

    def left_out(self, split: str, counts: dict[str, int]) -> None:
        """Say which bad entries of a split are left out, if any are."""
        if counts:
            self._line.say(left_out_text(split, counts))

    def progress(self, progress: "Progress") -> None:
        """Say how far it is, not too often."""
        now = time.monotonic()
        if not self._line.moves and now - self._told < LINE_SECONDS:
            return
        self._told = now
        left = "" if progress.seconds_left is None else f", about {duration(progress.seconds_left)} left"
        text = f"epoch {progress.epoch} of {progress.epochs}, step {progress.step} of {progress.total}, "
        self._line.show(f"{text}loss {progress.loss:.3f}{left}")

    def epoch(self, row: "Epoch", score: S | None) -> None:
        """Say what came of an epoch that was scored."""
        if score is not None:
            self._line.say(f"epoch {row.epoch}: loss {row.loss:.3f}, {self._score_text(score)}")

    def end(self, best: Path) -> None:
        """Say where everything is."""
        self._line.say(f"best weights: {best}\ncurves: {best.with_name('curve.png')}")


def left_out_text(split: str, counts: dict[str, int]) -> str:
    """Say on one line which bad entries of a split are left out, counted by kind."""
    from supernet.faults import remedied  # noqa: PLC0415

    return f"bad entries of {split}: {remedied(counts)}"


def evaluation_text(found: "Evaluation") -> str:
    """Write a score on one line; what COCO does not define is a dash."""

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    classes = ", ".join(f"{name} {shown(value)}" for name, value in found.class_ap50.items())
    return (
        f"AP {shown(found.ap)}, AP50 {shown(found.ap50)} ({classes}), AP75 {shown(found.ap75)}, "
        f"small {shown(found.ap_small)}, medium {shown(found.ap_medium)}, large {shown(found.ap_large)} "
        f"on {found.images} images"
    )


def accuracy_text(found: "Accuracy") -> str:
    """Write the score of a backbone on one line."""
    return f"top 1 {found.top1:.3f}, top 5 {found.top5:.3f} on {found.images} images"


def _size(config: "Config") -> str:
    return "x".join(map(str, config.image))


def _counted(names: "Names") -> str:
    """Say how many tensors there are at each site; sites of one stage or module together."""
    counts: dict[str, int] = {}
    for site, tensors in names.items():
        module = site.partition(".")[0]
        counts[module] = counts.get(module, 0) + len(tensors)
    return ", ".join(f"{module} {count}" for module, count in counts.items())


def _named(names: "Names") -> str:
    """Name the first tensors; the whole list stands in the folder of the run."""
    whole = [f"{site}.{tensor}" for site, tensors in names.items() for tensor in tensors]
    more = f" and {len(whole) - 4} more, see init.json" if len(whole) > 4 else ""
    return ", ".join(whole[:4]) + more


def speed_text(found: "Speed") -> str:
    """Write the times of the steps of detection in a table."""

    def row(name: str, step: "Spread", fps: str) -> tuple[str, ...]:
        return name, f"{step.median_ms:.2f}", f"{step.low_ms:.2f}", f"{step.high_ms:.2f}", fps

    batch = "" if found.batch == 1 else f" of {found.batch} images"
    rows = [
        row("preprocessing", found.preprocessing, "-"),
        row("network", found.graph, f"{found.graph_fps:.2f}"),
        row("network and post-processing", found.detection, f"{found.detection_fps:.2f}"),
    ]
    return (
        f"{table(('', 'median ms', 'quartile', 'quartile', 'FPS'), rows)}\n"
        f"over {found.runs} runs{batch}, threads: {found.threads}; reading and decoding files not counted"
    )
