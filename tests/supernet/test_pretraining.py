"""Pretraining a backbone on a folder of images, and starting detectors from what it leaves."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nas.blocks import Activation
from nas.named import named_space
from supernet.checkpoint import BackboneHeader, DetectorHeader, load_checkpoint, save_checkpoint
from supernet.classifier import Classifier, backbone_sites
from supernet.curves import BACKBONE_CHART, Curves
from supernet.detector import HeatDETR
from supernet.detector_training import TrainedDetector, train_detector
from supernet.errors import BadCheckpoint, BadDataset, CheckpointMismatch, NothingInCommon
from supernet.image_augment import ImageAugmentation
from supernet.image_folder import ImageFolder, open_image_folder
from supernet.loading import Loader
from supernet.pretrained import Transfer, start_from
from supernet.pretraining import PretrainedBackbone, accuracy, collate, draw, pretrain_backbone
from supernet.processes import Processes
from supernet.recipe import PretrainRecipe, named_pretrain_recipe
from supernet.training_run import RUN, Progress
from tests.supernet.coco_files import turned
from tests.supernet.tiny_space import TINY, tiny_data
from tests.supernet.trainings import RECIPE, splits

CONFIG = TINY.largest()
COLOURS = {"blue": (30, 30, 200), "green": (30, 200, 30), "red": (200, 30, 30)}
PRETRAINING = PretrainRecipe(
    epochs=3, batch=4, learning_rate=3e-3, warmup_epochs=0, warmup_steps=1, ema=0.5, drop_path=0.1, precision="fp32",
    augmentation=ImageAugmentation(area=(0.5, 1), light=0), evaluate_every=2,
)  # fmt: skip


class PulledPlug(Exception):
    pass


def write(folder: Path, split: str, each: int) -> Path:
    rng = np.random.default_rng(len(split))
    for name, colour in COLOURS.items():
        (folder / split / name).mkdir(parents=True)
        for number in range(each):
            noise = rng.integers(-25, 25, (48, 40, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(write(tmp_path_factory.mktemp("photos") / "photos", "train", 4), "val", 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("detector") / "data")


def opened(folder: Path) -> tuple[ImageFolder, ImageFolder]:
    return open_image_folder(folder, held_out=0.25, seed=0)


def pretrain(
    photos: Path,
    out: Path,
    recipe: PretrainRecipe = PRETRAINING,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
) -> PretrainedBackbone:
    return pretrain_backbone(
        TINY, CONFIG, opened(photos), out, recipe=recipe, progress=progress, clock=count(0.0).__next__
    )


def train(data: Path, out: Path, *, init: Path | None, epochs: int = 1) -> TrainedDetector:
    recipe = RECIPE.model_copy(update={"epochs": epochs, "evaluate_every": 1})
    return train_detector(TINY, CONFIG, splits(data), out, recipe=recipe, init=init, clock=count(0.0).__next__)


@pytest.fixture(scope="module")
def backbone(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> PretrainedBackbone:
    return pretrain(photos, tmp_path_factory.mktemp("backbone"))


def test_the_backbone_is_what_the_last_map_of_the_stages_depends_on() -> None:
    space = named_space("heatdetr-nano", classes=3)
    names = [site.name for site in backbone_sites(space.sites(space.largest()))]
    assert [name for name in names if not name.startswith("stage")] == [
        "stem", "sam2.align", "sam2.merge", "sam2.global", "sam2.pool", "sam3.merge", "sam3.global", "sam3.pool",
    ]  # fmt: skip
    assert names[-1] == "stage4.global"


def test_the_classifier_computes_what_the_detector_does_up_to_there() -> None:
    torch.manual_seed(0)
    detector, classifier = HeatDETR(TINY, CONFIG).eval(), Classifier(TINY, CONFIG, 5).eval()
    seen: list[torch.Tensor] = []
    detector.blocks["stage4_global"].register_forward_hook(lambda *found: seen.append(found[2]))
    classifier.blocks.load_state_dict(
        {
            name: tensor
            for name, tensor in detector.blocks.state_dict().items()
            if name in classifier.blocks.state_dict()
        }
    )
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        detector(images)
        logits = classifier(images)
        torch.testing.assert_close(logits, classifier.classify(seen[0].mean(dim=1)))
    assert logits.shape == (2, 5)


def test_a_backbone_learns_colours_and_leaves_what_a_run_leaves(photos: Path, backbone: PretrainedBackbone) -> None:
    assert [(row.epoch, row.step) for row in backbone.rows] == [(1, 3), (2, 6), (3, 9)]
    assert [row.top1 is None for row in backbone.rows] == [True, False, False]
    assert backbone.rows[-1].top5 == 1.0  # of three classes
    folder = backbone.last.parent
    assert tuple(Curves(folder, BACKBONE_CHART, epochs=3).rows) == backbone.rows
    assert (folder / "curve.png").stat().st_size > 10_000
    tensors, header = load_checkpoint(backbone.last, BackboneHeader)
    assert (header.classes, header.config, header.data) == (("blue", "green", "red"), CONFIG, "photos")
    assert PretrainRecipe.model_validate(header.recipe) == PRETRAINING
    classifier = Classifier(TINY, CONFIG, 3)
    classifier.load_state_dict({name.removeprefix("backbone."): tensor for name, tensor in tensors.items()})
    again = accuracy(classifier.eval(), opened(photos)[1], CONFIG.image)
    assert header.metrics == again.model_dump(mode="json")
    assert (again.images, again.top1) == (6, backbone.rows[-1].top1)


@pytest.mark.parametrize("plug", [2, 5])
def test_a_killed_pretraining_goes_on_and_ends_with_the_same_weights(
    plug: int, photos: Path, tmp_path: Path, backbone: PretrainedBackbone
) -> None:
    def pull(progress: Progress) -> None:
        if progress.step == plug:
            raise PulledPlug

    with pytest.raises(PulledPlug):
        pretrain(photos, tmp_path, progress=pull)
    ended = pretrain(photos, tmp_path)
    for name in ("best.safetensors", "last.safetensors", RUN):
        mine, _ = load_checkpoint(ended.last.with_name(name), BackboneHeader)
        theirs, _ = load_checkpoint(backbone.last.with_name(name), BackboneHeader)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    with pytest.raises(CheckpointMismatch, match=r"differs in smoothing \(0\.1, now 0\.0\)"):
        pretrain(photos, tmp_path, PRETRAINING.model_copy(update={"smoothing": 0.0}))


def test_a_pretraining_judged_on_other_images_is_not_taken_up(photos: Path, tmp_path: Path) -> None:
    once = PRETRAINING.model_copy(update={"epochs": 1})
    folder = shutil.copytree(photos, tmp_path / "photos")
    pretrain(folder, tmp_path / "run", once)
    (folder / "val" / "red" / "0.png").unlink()
    with pytest.raises(CheckpointMismatch, match=r"differs in held_out_sha256 \(\w{64}, now \w{64}\): give"):
        pretrain(folder, tmp_path / "run", once)


def test_a_step_sees_the_same_mixtures_however_it_is_shared(photos: Path) -> None:
    train_split, _ = opened(photos)
    recipe = PRETRAINING.model_copy(update={"augmentation": ImageAugmentation()})

    def drawn(micro: int | None, processes: Processes) -> list[tuple[bytes, bytes]]:
        loader = Loader(
            partial(draw, train_split, recipe, (64, 64)), collate, images=len(train_split), workers=0,
            recipe=recipe.model_copy(update={"micro_batch": micro}), processes=processes,
        )  # fmt: skip
        batches = [batch for step in loader.epoch(1) for batch in step]
        return [(i.numpy().tobytes(), s.numpy().tobytes()) for batch in batches for i, s in zip(*batch, strict=True)]

    whole = drawn(None, Processes())
    assert drawn(3, Processes()) == whole
    assert {*drawn(None, Processes(0, 2)), *drawn(None, Processes(1, 2))} == set(whole)


def test_shares_of_classes_are_smoothed_and_add_up(photos: Path) -> None:
    train_split, _ = opened(photos)
    plain = PRETRAINING.model_copy(update={"augmentation": ImageAugmentation(mixup=0, cutmix=0)})
    for index in range(len(train_split)):
        found = draw(train_split, plain, (64, 64), index, np.random.default_rng(index))
        wanted = np.full(3, 0.1 / 3) + 0.9 * np.eye(3)[train_split.labels[index]]
        assert found.shares.tolist() == pytest.approx(wanted.tolist())
        both = draw(train_split, PRETRAINING, (64, 64), index, np.random.default_rng(index))
        assert both.shares.sum() == pytest.approx(1)
        assert both.shares.min() >= 0.1 / 3 - 1e-6


def test_swins_recipe() -> None:
    swin = named_pretrain_recipe("swin")
    assert (swin.epochs, swin.batch, swin.learning_rate, swin.weight_decay) == (300, 1024, 1e-3, 0.05)
    assert (swin.warmup(1251), swin.smoothing, swin.clip_norm) == (20 * 1251, 0.1, 5.0)
    how = swin.augmentation
    assert (how.mixup, how.cutmix, how.erasing, how.area) == (0.8, 1.0, 0.25, (0.08, 1.0))


def test_without_held_out_images_a_seeded_share_of_each_class_is(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos", "train", 8)
    train_split, held = open_image_folder(folder, held_out=0.25, seed=1)
    assert np.bincount(train_split.labels).tolist() == [6, 6, 6]
    assert np.bincount(held.labels).tolist() == [2, 2, 2]
    assert not set(train_split.paths) & set(held.paths)
    again, other = (open_image_folder(folder, held_out=0.25, seed=seed)[1].paths for seed in (1, 2))
    assert again == held.paths != other
    assert np.bincount(open_image_folder(folder, held_out=0.01, seed=1)[1].labels).tolist() == [1, 1, 1]


def test_every_bad_image_is_named_before_anything_starts(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos", "train", 3)
    (folder / "train" / "red" / "1.png").write_bytes(b"no picture")
    whole = (folder / "train" / "blue" / "0.png").read_bytes()
    (folder / "train" / "blue" / "broken.JPG").write_bytes(whole[: len(whole) // 2])
    (folder / "train" / "blue" / "notes.txt").write_text("no image, and not looked at")
    with pytest.raises(BadDataset) as unreadable:
        opened(folder)
    assert unreadable.value.faults == ("image train/red/1.png: cannot identify image file",)
    (folder / "train" / "red" / "1.png").unlink()
    with pytest.raises(BadDataset, match=r"image train/blue/broken\.JPG: (image file is truncated|broken)"):
        opened(folder)


def test_images_that_do_not_fit_into_memory_are_read_when_they_are_asked_for(photos: Path) -> None:
    kept, read = (open_image_folder(photos, held_out=0.1, seed=0, memory_mib=mib)[0] for mib in (10, 0))
    assert all(np.array_equal(kept[i].pixels, read[i].pixels) for i in range(len(kept)))
    assert kept.content_sha256 != read.content_sha256


@pytest.mark.parametrize("memory_mib", [10, 0])
def test_a_photo_held_upright_is_learned_upright(tmp_path: Path, memory_mib: float) -> None:
    folder = write(tmp_path / "photos", "train", 3)
    turned(folder / "train" / "blue" / "0.png", (6, 4))
    pictures = [*map(list, open_image_folder(folder, held_out=0.3, seed=0, memory_mib=memory_mib))]
    (pixels,) = (one.pixels for part in pictures for one in part if one.pixels.shape[0] < 48)
    assert pixels.shape == (6, 4, 3)
    assert pixels[0, 3].tolist() == [255, 255, 255]


def test_an_image_that_breaks_later_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos", "train", 3)
    found, _ = open_image_folder(folder, held_out=0.3, seed=0, memory_mib=0)
    (folder / found.paths[2]).write_bytes(b"gone")
    with pytest.raises(BadDataset, match=rf"image {found.paths[2]}: cannot identify image file"):
        found[2]


def test_folders_that_are_none_of_images_by_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="there is no folder train with one folder for each class"):
        opened(tmp_path)
    folder = write(tmp_path / "photos", "train", 1)
    with pytest.raises(BadDataset, match="no image is held out: add images, or a folder val"):
        opened(folder)
    (folder / "train" / "empty").mkdir()
    (folder / "val" / "black").mkdir(parents=True)
    with pytest.raises(BadDataset) as refused:
        opened(folder)
    assert refused.value.faults == (
        "train/empty holds no image",
        "val/black is no class of train",
        "no image is held out: add images, or a folder val",
    )


def test_a_detector_takes_a_backbone_and_accounts_for_the_rest(
    data: Path, tmp_path: Path, backbone: PretrainedBackbone
) -> None:
    detector = HeatDETR(TINY, CONFIG)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    found = start_from(backbone.best, detector, classes=("disc", "ring", "cross"))
    tensors, _ = load_checkpoint(backbone.best, BackboneHeader)
    after = detector.state_dict()
    learned = [name for name in after if not name.endswith("num_batches_tracked")]
    shared = [name for name in learned if f"backbone.{name}" in tensors]
    assert all(torch.equal(after[name], tensors[f"backbone.{name}"]) for name in shared)
    assert all(torch.equal(after[name], before[name]) for name in learned if name not in shared)
    assert (found.origin.taken, found.origin.unfit) == (len(shared), 0)
    assert (found.origin.missing, found.origin.left_over) == (len(learned) - len(shared), 2)
    assert found.left_over == {"classify": ("bias", "weight")}
    assert "stage4.global" in found.taken
    assert {site.partition(".")[0] for site in found.missing} == {"sam4", "scm", "tcm", "head"}
    ended = train(data, tmp_path, init=backbone.best)
    assert load_checkpoint(ended.best, DetectorHeader)[1].origin == found.origin
    kept = json.loads((tmp_path / "init.json").read_text())
    assert kept["left_over"] == {"classify": ["bias", "weight"]}
    assert kept["origin"] == found.origin.model_dump()


def test_a_detector_of_other_classes_gives_all_but_what_names_them(data: Path, tmp_path: Path) -> None:
    first = train(data, tmp_path / "first", init=None)
    more = TINY.model_copy(update={"structure": TINY.structure.model_copy(update={"classes": 5})})
    found = start_from(first.best, HeatDETR(more, more.largest()), classes=("a", "b", "c", "d", "e"))
    assert found.origin.missing == found.origin.left_over == 0
    named = "classes disc, ring, cross, here a, b, c, d, e"
    assert found.unfit == {"head": (f"classify.weight ({named})", f"classify.bias ({named})")}
    renamed = start_from(first.best, HeatDETR(TINY, CONFIG), classes=("ring", "disc", "cross"))
    assert renamed.origin.unfit == 2  # equal shapes, other meanings
    same = start_from(first.best, HeatDETR(TINY, CONFIG), classes=("disc", "ring", "cross"))
    assert same.origin.unfit == same.origin.missing == same.origin.left_over == 0


def test_weights_of_another_activation_are_taken_with_a_warning_everywhere(
    data: Path, tmp_path: Path, backbone: PretrainedBackbone
) -> None:
    """Names and shapes are equal: nothing else would tell."""
    structure = TINY.structure.model_copy(update={"activation": Activation.GELU})
    other = TINY.model_copy(update={"structure": structure})
    told: list[Transfer] = []
    recipe = RECIPE.model_copy(update={"epochs": 1})
    ended = train_detector(
        other, other.largest(), splits(data), tmp_path, recipe=recipe, init=backbone.best, on_init=told.append
    )
    warning = (
        "these weights were trained with relu, this detector computes with gelu: they may help less, "
        "compare with a run without --init, or train both in a space of one activation"
    )
    assert [found.warning for found in told] == [warning]
    assert told[0].origin.taken > 0
    assert json.loads((tmp_path / "init.json").read_text())["warning"] == warning
    origin = load_checkpoint(ended.last, DetectorHeader)[1].origin
    assert origin is not None
    assert origin.other_activation is Activation.RELU
    same = start_from(backbone.best, HeatDETR(TINY, CONFIG), classes=("disc", "ring", "cross"))
    assert (same.warning, same.origin.other_activation) == (None, None)


def test_what_does_not_fit_is_named_with_both_shapes(backbone: PretrainedBackbone) -> None:
    stages = CONFIG.stages
    narrow = CONFIG.with_stage(3, stages[3].model_copy(update={"width": 32})).with_stage(
        2, stages[2].model_copy(update={"width": 32})
    )
    found = start_from(backbone.best, HeatDETR(TINY, narrow), classes=("disc", "ring", "cross"))
    assert "conv.conv.weight (64x32x3x3, here 32x32x3x3)" in found.unfit["stage3.entry"]
    assert "stage2.slot0" in found.taken
    assert "stage2.slot0" not in found.unfit


def test_nothing_in_common_is_refused(backbone: PretrainedBackbone, tmp_path: Path) -> None:
    tensors, header = load_checkpoint(backbone.best, BackboneHeader)
    # Temperatures of XCA have the same shape at any width: they alone are no reason to call this a start.
    strange = {name: tensor if tensor.dim() == 3 else torch.zeros(7, 7) for name, tensor in tensors.items()}
    save_checkpoint(tmp_path / "strange.safetensors", strange, header)
    message = r"strange\.safetensors has no weights in common with this detector \(it is of config \w{16} of tiny\)"
    with pytest.raises(NothingInCommon, match=message):
        start_from(tmp_path / "strange.safetensors", HeatDETR(TINY, CONFIG), classes=("disc", "ring", "cross"))
    (tmp_path / "text.safetensors").write_bytes(b"no weights")
    with pytest.raises(BadCheckpoint, match=r"text\.safetensors is no usable checkpoint: it cannot be read"):
        start_from(tmp_path / "text.safetensors", HeatDETR(TINY, CONFIG), classes=("disc", "ring", "cross"))


def test_a_run_goes_on_from_the_same_file_only(data: Path, tmp_path: Path, backbone: PretrainedBackbone) -> None:
    ended = train(data, tmp_path, init=backbone.best)
    assert train(data, tmp_path, init=backbone.best) == ended
    hashed = r"of the file with SHA-256 \w{16}"
    with pytest.raises(CheckpointMismatch, match=rf"differs in first weights \({hashed}, now drawn\)"):
        train(data, tmp_path, init=None)
    tensors, header = load_checkpoint(backbone.best, BackboneHeader)
    save_checkpoint(tmp_path / "other.safetensors", tensors, header.model_copy(update={"epoch": 99}))
    with pytest.raises(CheckpointMismatch, match=rf"first weights \({hashed}, now {hashed}\)"):
        train(data, tmp_path, init=tmp_path / "other.safetensors")
