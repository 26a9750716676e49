import re
from pathlib import Path

import numpy as np
import pytest
import torch

from supernet.augment import Augmentation
from supernet.dataset import CocoDataset, Sample
from supernet.errors import BadDataset, BatchTooSmall, UnevenShares
from supernet.loading import Batch, Loader, detector_loader
from supernet.processes import Processes
from supernet.recipe import Recipe
from tests.supernet.tiny_space import tiny_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return CocoDataset(tiny_data(tmp_path_factory.mktemp("loading") / "data"), "train", image=None)


def loader(
    data: CocoDataset, *, batch: int = 4, micro: int | None = None, rank: int = 0, size: int = 1
) -> Loader[Sample, Batch]:
    still = Augmentation(mirror=0, zoom_chance=0, light=0)
    recipe = Recipe(batch=batch, micro_batch=micro, augmentation=still, seed=3)
    return detector_loader(data, (64, 64), recipe, workers=0, processes=Processes(rank, size))


def images(steps: list[list[Batch]]) -> list[bytes]:
    """What stands at each place of an epoch."""
    return [image.numpy().tobytes() for step in steps for batch in step for image in batch.images]


def test_an_epoch_sees_every_image_once_in_an_order_of_its_own(data: CocoDataset) -> None:
    drawn = loader(data)
    first, again, second = (images(list(drawn.epoch(number))) for number in (0, 0, 1))
    assert drawn.steps == 3
    assert len(set(first)) == len(first) == 12
    assert first == again
    assert set(second) == set(first)
    assert second != first


def test_boxes_and_labels_come_with_their_image(data: CocoDataset) -> None:
    by_pixels = {sample.pixels.tobytes(): sample for sample in data}
    for step in loader(data).epoch(0):
        [batch] = step
        assert batch.images.shape == (4, 3, 64, 64)
        assert batch.images.dtype == torch.float32
        for image, target in zip(batch.images, batch.targets, strict=True):
            pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
            sample = by_pixels[pixels.tobytes()]
            assert np.array_equal(target.boxes.numpy(), sample.boxes)
            assert np.array_equal(target.labels.numpy(), sample.labels)


@pytest.mark.parametrize(("batch", "steps"), [(5, 2), (12, 1), (20, 1)])
def test_an_epoch_has_whole_batches_and_at_least_one(data: CocoDataset, batch: int, steps: int) -> None:
    drawn = loader(data, batch=batch)
    found = list(drawn.epoch(0))
    assert drawn.steps == len(found) == steps
    assert {sum(len(part.images) for part in step) for step in found} == {batch}


def test_micro_batches_hold_the_same_images(data: CocoDataset) -> None:
    whole, parts = list(loader(data).epoch(2)), list(loader(data, micro=3).epoch(2))
    assert [[len(batch.images) for batch in step] for step in parts] == [[2, 2]] * 3
    assert images(parts) == images(whole)


def test_processes_share_the_images_of_a_step(data: CocoDataset) -> None:
    whole = [set(images([step])) for step in loader(data).epoch(1)]
    shares = [[set(images([step])) for step in loader(data, rank=rank, size=2).epoch(1)] for rank in (0, 1)]
    for step, one, other in zip(whole, *shares, strict=True):
        assert len(one) == len(other) == 2
        assert one | other == step


def test_child_processes_draw_the_same(data: CocoDataset) -> None:
    def drawn(workers: int) -> list[bytes]:
        made = detector_loader(data, (64, 64), Recipe(batch=4, seed=3), workers=workers)
        return images([*made.epoch(0), *made.epoch(1)])

    assert drawn(1) == drawn(0)


def test_a_process_without_an_image_is_refused(data: CocoDataset) -> None:
    with pytest.raises(BatchTooSmall, match="a batch of 1 cannot be shared by 2 processes: each needs at least one"):
        loader(data, batch=1, size=2)


@pytest.mark.parametrize(("batch", "size", "micro"), [(9, 2, 4), (11, 3, 3), (12, 5, 2), (9, 1, 4)])
def test_uneven_shares_are_cut_into_equally_many_parts_so_that_no_process_waits_for_another(
    data: CocoDataset, batch: int, size: int, micro: int
) -> None:
    ranks = [list(loader(data, batch=batch, micro=micro, rank=rank, size=size).epoch(0)) for rank in range(size)]
    assert len({len(step) for steps in ranks for step in steps}) == 1
    cuts = [[len(part.images) for part in step] for steps in ranks for step in steps]
    assert max(map(max, cuts)) <= micro
    assert all(max(parts) - min(parts) <= 1 for parts in cuts)
    [whole] = list(loader(data, batch=batch).epoch(0))[:1]
    assert {image for steps in ranks for image in images(steps[:1])} == set(images([whole]))


def test_a_process_without_an_image_for_a_micro_batch_is_refused(data: CocoDataset) -> None:
    message = r"a batch of 3 leaves a process of 2 only 1 image\(s\) for 2 micro-batches: make it a multiple of 2, or"
    for rank in (0, 1):
        with pytest.raises(UnevenShares, match=message):
            loader(data, batch=3, micro=1, rank=rank, size=2)
    assert [len(step) for step in loader(data, batch=4, micro=1, rank=1, size=2).epoch(0)] == [2] * 3


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_damaged_behind_its_header_is_named_by_whichever_process_reads_it(
    workers: int, tmp_path: Path
) -> None:
    folder = tiny_data(tmp_path / "data")
    torn = sorted((folder / "train").iterdir())[5]
    torn.write_bytes(torn.read_bytes()[:-600])
    streamed = CocoDataset(folder, "train", image=None, memory_mib=0)
    drawn = detector_loader(streamed, (64, 64), Recipe(batch=4, seed=3), workers=workers)
    with pytest.raises(BadDataset, match=rf"^{re.escape(str(folder))}: 1 fault\(s\): image {torn.name}: ") as refused:
        list(drawn.epoch(0))
    assert str(refused.value).endswith(f"; `heatnas data check {folder}` reads all.")
    assert (refused.value.folder, len(refused.value.faults)) == (folder, 1)
