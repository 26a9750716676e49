"""Train a detector of ours and one of others on the same data for the same time, and compare their AP.

Measures: our config (the largest of `heatdetr-edge` unless told otherwise) with the recipe `small` of `heatnas train`,
and D-FINE-N of the package `transformers`, both from random weights, at the same input size, with the same changes of
the images, batch size, threads and held-out split, networks in 16 bits and losses in 32, each for `--minutes` of
training without evaluation; AP by pycocotools, of the last averaged weights. D-FINE-N learns as its authors train it:
AdamW, rate 8e-4 (`--peer-rates` tries others), half of it for the backbone, decay 1e-4, gradient norm 0.1, its own
losses with denoising; the rate rises for 2 % of the time and falls along a cosine. It is scored as its authors do, by
its 100 best predictions, without threshold or NMS. Without `--data` on procedural shapes. Takes as long as `--minutes`
says for each, 30 by default.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _common import Options, note, options, report
from _training import chosen_config, epochs_in, open_splits, train_ours, training_command_line
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._pytree import tree_map

from nas.config import Config
from nas.macs import gmacs
from nas.space import SearchSpace
from supernet.checkpoint import load_detector
from supernet.detector_training import Splits
from supernet.evaluation import Evaluation, evaluate_module, images_to_floats, score_detections
from supernet.loading import Batch, detector_loader
from supernet.optimisers import cosine_share
from supernet.postprocess import Detections
from supernet.recipe import Recipe, named_recipe, precision_on

PEER = "dfine-n"
BACKBONE_SHARE, DECAY, CLIP_NORM, EMA = 0.5, 1e-4, 0.1, 0.995
WARMUP = 0.02
"""Share of the training in which the rate climbs."""
BEST = 100
"""Predictions of the peer that count in an image, as many as COCO looks at."""
COLUMNS = ("network", "gmacs", "params_m", "epochs", "minutes", "ap", "ap50", "class_ap50")


def main() -> None:
    """Train both, score, print."""
    parser = training_command_line(__doc__, minutes=30.0)
    parser.add_argument("--peer-rates", type=float, nargs="+", default=[8e-4], help="learning rates of the peer")
    arguments = parser.parse_args()
    chosen = options(arguments)
    if chosen.quick:
        arguments.config, arguments.image, arguments.minutes = "smallest", "256x256", 0.3
    torch.set_num_threads(arguments.threads)
    space, config = chosen_config(arguments)
    recipe = named_recipe("small").model_copy(update={"seed": chosen.seed})
    with tempfile.TemporaryDirectory() as scratch:
        data = open_splits(arguments.data, config.image, scratch=Path(scratch), seed=chosen.seed)
        rows = [measure_ours(arguments, space, config, data, recipe, chosen.out or Path(scratch))]
        rows += [measure_peer(arguments, chosen, config, data, recipe, rate) for rate in arguments.peer_rates]
    results = {"data": data.name, "image": config.image, "threads": arguments.threads, "networks": rows}
    report(chosen, results, [list(COLUMNS), *([row[key] for key in COLUMNS] for row in rows)])


def measure_ours(
    arguments: argparse.Namespace, space: SearchSpace, config: Config, data: Splits, recipe: Recipe, out: Path
) -> dict[str, object]:
    """Train ours with as many epochs as fit, and score its last weights."""
    # The peer is scored once, so ours is too: no choice among the epochs by the split that judges.
    once = recipe.model_copy(update={"evaluate_every": 1_000_000})
    epochs = epochs_in(arguments.minutes, once, lambda trial, folder: train_ours(space, config, data, folder, trial)[0])
    fitted = once.model_copy(update={"epochs": epochs})
    trained, minutes = train_ours(space, config, data, out / f"ours-{config.id}-{fitted.id}", fitted)
    minutes -= trained.rows[-1].evaluation_seconds / 60
    detector = load_detector(trained.last).detector
    found = evaluate_module(detector, detector.head.anchors, data.held_out)
    params = sum(weight.numel() for weight in detector.parameters()) / 1e6
    name = f"{space.name} {arguments.config}, stride {config.prediction_stride}"
    return _row(name, gmacs(space.blocks(config)), params, epochs, minutes, found)


def measure_peer(
    arguments: argparse.Namespace, chosen: Options, config: Config, data: Splits, recipe: Recipe, rate: float
) -> dict[str, object]:
    """Train the peer for the same time, and score its averaged weights."""
    from _peers import count_gmacs, dfine_n

    torch.manual_seed(chosen.seed)
    model = dfine_n(len(data.train.classes))
    _with_whole_losses(model)
    cost = count_gmacs(model.eval(), config.image)
    began = time.monotonic()
    average, epochs = train_peer(model, config.image, data, recipe, rate, seconds=60 * arguments.minutes)
    minutes = (time.monotonic() - began) / 60
    found = score_peer(average.eval(), config.image, data)
    params = sum(weight.numel() for weight in model.parameters()) / 1e6
    return _row(f"{PEER}, rate {rate:g}", cost, params, epochs, minutes, found)


def train_peer(
    model: nn.Module, image: tuple[int, int], data: Splits, recipe: Recipe, rate: float, *, seconds: float
) -> tuple[nn.Module, int]:
    """Train until the time is over; return the averaged network and the epochs that were finished."""
    backbone = {id(weight) for name, weight in model.named_parameters() if "backbone" in name}
    groups = [
        {"params": [weight for weight in model.parameters() if (id(weight) in backbone) is inside], "share": share}
        for inside, share in ((True, BACKBONE_SHARE), (False, 1.0))
    ]
    optimiser = torch.optim.AdamW(groups, lr=rate, weight_decay=DECAY)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA), use_buffers=True)
    loader = detector_loader(data.train, image, recipe, workers=0)
    half = precision_on(torch.device("cpu"), "auto") == "bf16"
    model.train()
    began = told = time.monotonic()
    epoch = 0
    while True:
        for batches in loader.epoch(epoch):
            now = time.monotonic()
            done = (now - began) / seconds
            if done >= 1:
                return average.module, epoch
            for group in optimiser.param_groups:
                group["lr"] = rate * group["share"] * _share(done)
            optimiser.zero_grad()
            loss = torch.zeros(())
            for batch in batches:
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    loss = model(pixel_values=batch.images, labels=_labels(batch, image)).loss / len(batches)
                loss.backward()
            clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimiser.step()
            average.update_parameters(model)
            if now - told > 30:
                told = now
                note(f"{PEER}: epoch {epoch + 1}, loss {loss.item():.2f}, {(now - began) / 60:.1f} minutes")
        epoch += 1


def _share(done: float) -> float:
    """Return the share of the peak rate after a share of the time, as `supernet.optimisers` has it over steps."""
    return cosine_share(round(10_000 * done), 10_000, warmup=round(10_000 * WARMUP))


def _labels(batch: Batch, image: tuple[int, int]) -> list[dict[str, Tensor]]:
    """Return the objects of each image as the peer wants them: centre and sides as shares of the image."""
    height, width = image
    labels = []
    for target in batch.targets:
        low, high = (target.boxes / torch.tensor((width, height, width, height))).split(2, dim=1)
        labels.append({"class_labels": target.labels, "boxes": torch.cat(((low + high) / 2, high - low), dim=1)})
    return labels


def _with_whole_losses(model: nn.Module) -> None:
    """Have a model's losses computed in 32 bits, as its authors do, whatever the network is computed in."""
    losses = model.loss_function

    def whole(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the package hands over
        args, kwargs = tree_map(lambda one: one.float() if _is_float(one) else one, (args, kwargs))
        with torch.autocast("cpu", enabled=False):
            return losses(*args, **kwargs)

    model.loss_function = whole


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@torch.no_grad()
def score_peer(model: nn.Module, image: tuple[int, int], data: Splits) -> Evaluation:
    """Score the peer by its best predictions: each object has one query, so nothing is suppressed."""
    height, width = image
    scale = torch.tensor((width, height, width, height))
    found = []
    for sample in data.held_out:
        output = model(pixel_values=torch.from_numpy(images_to_floats(sample.pixels[None])))
        middle, sides = output.pred_boxes[0].split(2, dim=-1)
        boxes = torch.cat((middle - sides / 2, middle + sides / 2), dim=-1) * scale
        scores, places = output.logits[0].sigmoid().flatten().topk(BEST)
        queries, labels = places // output.logits.shape[-1], places % output.logits.shape[-1]
        found.append(Detections(boxes[queries].numpy(), scores.numpy(), labels.numpy()))
    return score_detections(found, data.held_out)


def _row(name: str, cost: float, params: float, epochs: int, minutes: float, found: Evaluation) -> dict[str, object]:
    by_class = ", ".join(f"{label} {value:.3f}" for label, value in found.class_ap50.items() if value is not None)
    values = (name, cost, params, epochs, minutes, found.ap, found.ap50, by_class)
    return dict(zip(COLUMNS, values, strict=True))


if __name__ == "__main__":
    main()
