"""How D-FINE-N is trained beside ours.

As its authors train it: AdamW, decay 1e-4 but none of norms, nor of biases outside the backbone, half of the rate for
the backbone, gradient norm 0.1, losses in 32 bits with denoising. What goes with the length of a run is ours, for here
the time decides that: the rate rises for 2 % of it and falls along a cosine, and weights are averaged as ours are. It
is scored by its 100 best predictions, without a threshold or NMS.
"""

import time
from collections.abc import Iterator
from typing import Any

import torch
from _common import note
from _peers import count_gmacs, dfine_n
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils._pytree import tree_map

from supernet.detector_training import Splits
from supernet.evaluation import Evaluation, images_to_floats, score_detections
from supernet.loading import Batch, detector_loader
from supernet.optimisers import cosine_share
from supernet.postprocess import Detections
from supernet.recipe import Recipe, precision_on
from supernet.stepping import averaged

NAME = "dfine-n"
BACKBONE_SHARE, DECAY, CLIP_NORM, EMA = 0.5, 1e-4, 0.1, 0.995
WARMUP = 0.02
"""Share of the time in which the rate climbs."""
TICKS = 10_000
"""Parts of the time, as fine as the rate follows it."""
BEST = 100
"""Predictions that count in an image, as many as COCO looks at."""
NORMS = (nn.BatchNorm2d, nn.LayerNorm)


class Training:
    """A training of D-FINE-N from random weights.

    Attributes:
        gmacs: multiply-adds of the network at its input size, in units of 1e9.
        params_m: its parameters in millions.
        steps: optimiser steps so far.
    """

    def __init__(
        self, data: Splits, image: tuple[int, int], recipe: Recipe, device: torch.device, *, rate: float
    ) -> None:
        """Prepare; `recipe` says batch, changes of the images, seed and how often to evaluate."""
        torch.manual_seed(recipe.seed)
        model = dfine_n(len(data.train.classes))
        self.gmacs = count_gmacs(model.eval(), image)
        self.params_m = sum(weight.numel() for weight in model.parameters()) / 1e6
        self.steps = 0
        self._data, self._image, self._recipe, self._device, self._rate = data, image, recipe, device, rate
        self._precision = precision_on(device, recipe.precision)
        if self._precision == "fp16":
            raise SystemExit("bf16 is wanted for D-FINE-N and this GPU computes in fp16 alone: leave --peer out")
        _with_whole_losses(model, device)
        self._model = model.to(device)
        self._optimiser = torch.optim.AdamW(list(_groups(model)), lr=rate, weight_decay=DECAY)
        self._average = averaged(model, EMA)

    def run(self, seconds: float) -> Iterator[tuple[int, Evaluation]]:
        """Train for so long; yield epoch and score as often as the recipe evaluates, and at the end."""
        loader = detector_loader(self._data.train, self._image, self._recipe, workers=0)
        began = told = time.monotonic()
        epoch = 0
        while True:
            self._model.train()
            for batches in loader.epoch(epoch):
                now = time.monotonic()
                if now - began >= seconds:
                    yield epoch, self.score()
                    return
                loss = self._step(batches, done=(now - began) / seconds)
                if now - told > 30:
                    told = now
                    note(f"{NAME}: epoch {epoch + 1}, loss {loss:.2f}, {(now - began) / 60:.1f} minutes")
            epoch += 1
            if epoch % self._recipe.evaluate_every == 0:
                yield epoch, self.score()

    def _step(self, batches: list[Batch], *, done: float) -> float:
        share = cosine_share(round(TICKS * done), TICKS, warmup=round(TICKS * WARMUP))
        for group in self._optimiser.param_groups:
            group["lr"] = self._rate * group["share"] * share
        self._optimiser.zero_grad()
        whole = 0.0
        for batch in batches:
            part = batch.to(self._device)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._precision == "bf16"):
                loss = self._model(pixel_values=part.images, labels=_labels(part, self._image)).loss / len(batches)
            loss.backward()
            whole += loss.item()
        clip_grad_norm_(self._model.parameters(), CLIP_NORM)
        self._optimiser.step()
        self._average.update_parameters(self._model)
        self.steps += 1
        return whole

    @torch.no_grad()
    def score(self) -> Evaluation:
        """Score the averaged weights by the best predictions: each object has one query, so nothing is suppressed."""
        height, width = self._image
        scale = torch.tensor((width, height, width, height))
        model = self._average.module.eval()
        found = []
        for sample in self._data.held_out:
            pixels = torch.from_numpy(images_to_floats(sample.pixels[None])).to(self._device)
            output = model(pixel_values=pixels)
            middle, sides = output.pred_boxes[0].cpu().split(2, dim=-1)
            boxes = torch.cat((middle - sides / 2, middle + sides / 2), dim=-1) * scale
            logits = output.logits[0].cpu()
            scores, places = logits.sigmoid().flatten().topk(BEST)
            queries, labels = places // logits.shape[-1], places % logits.shape[-1]
            found.append(Detections(boxes[queries].numpy(), scores.numpy(), labels.numpy()))
        return score_detections(found, self._data.held_out)


def _groups(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Sort the parameters by rate and decay."""
    norms = {id(weight) for module in model.modules() if isinstance(module, NORMS) for weight in module.parameters()}
    sorted_out: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        in_backbone = "backbone" in name
        is_plain = id(weight) in norms or (name.endswith("bias") and not in_backbone)
        sorted_out.setdefault((in_backbone, is_plain), []).append(weight)
    for (in_backbone, is_plain), weights in sorted_out.items():
        share, decay = BACKBONE_SHARE if in_backbone else 1.0, 0.0 if is_plain else DECAY
        yield {"params": weights, "share": share, "weight_decay": decay}


def _labels(batch: Batch, image: tuple[int, int]) -> list[dict[str, Tensor]]:
    """Return the targets as the package wants them: centres and sides as shares of the image."""
    height, width = image
    labels = []
    for target in batch.targets:
        scale = target.boxes.new_tensor((width, height, width, height))
        low, high = (target.boxes / scale).split(2, dim=1)
        labels.append({"class_labels": target.labels, "boxes": torch.cat(((low + high) / 2, high - low), dim=1)})
    return labels


def _with_whole_losses(model: nn.Module, device: torch.device) -> None:
    """Have a model's losses computed in 32 bits, as its authors do, whatever the network is computed in."""
    losses = model.loss_function

    def whole(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the package hands over
        args, kwargs = tree_map(lambda one: one.float() if _is_float(one) else one, (args, kwargs))
        with torch.autocast(device.type, enabled=False):
            return losses(*args, **kwargs)

    model.loss_function = whole


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
