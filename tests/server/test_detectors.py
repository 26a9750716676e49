import json
from pathlib import Path

import pytest

from nas.errors import InvalidConfig, UnknownSpace
from nas.named import named_config, named_space
from server.detectors import choose, choose_backbone


def test_extremes_of_a_space_at_any_of_its_sizes() -> None:
    space, config = choose("largest", "heatdetr-edge", None, stride=None, classes=5)
    assert space == named_space("heatdetr-edge", classes=5)
    assert config == space.largest()
    _, small = choose("smallest", "heatdetr-edge", (256, 256), stride=None, classes=5)
    assert small == space.smallest((256, 256))
    assert choose("smallest", "heatdetr-edge", None, stride=None, classes=5)[1].image == (640, 640)


def test_a_detector_of_table_3() -> None:
    space, config = choose("heatdetr-small", "heatdetr", (640, 640), stride=None, classes=80)
    assert config == named_config("heatdetr-small", space, image=(640, 640))


def test_a_detector_of_table_3_for_a_runtime() -> None:
    space, config = choose("heatdetr-small", "heatdetr@cuda", (640, 640), stride=32, classes=80)
    assert space == named_space("heatdetr@cuda", classes=80)
    assert config == named_config("heatdetr-small", space, image=(640, 640))


def test_a_finer_prediction_map() -> None:
    for name, asked, cells in (
        ("largest", None, 40),
        ("largest", 32, 20),
        ("smallest", None, 20),
        ("smallest", 16, 40),
    ):
        space, config = choose(name, "heatdetr-edge", None, stride=asked, classes=3)
        head = space.sites(config)[-1].block
        assert (head.height, head.width) == (cells, cells)


def test_the_file_of_an_answer_with_other_classes(tmp_path: Path) -> None:
    space = named_space("heatdetr-edge", classes=3)
    answer = space.smallest((320, 320))
    path = tmp_path / "config.json"
    document = {"space": space.model_dump(mode="json"), "config": answer.model_dump(mode="json")}
    path.write_text(json.dumps(document))
    found, config = choose(str(path), "heatdetr", None, stride=None, classes=7)
    assert found == named_space("heatdetr-edge", classes=7)
    assert (config.stages, config.image, config.space) == (answer.stages, (320, 320), found.id)
    assert choose(str(path), "heatdetr", (256, 256), stride=None, classes=3)[1].image == (256, 256)
    assert choose(str(path), "heatdetr", None, stride=None, classes=3)[1].prediction_stride == 32
    assert choose(str(path), "heatdetr", None, stride=16, classes=3)[1].prediction_stride == 16


def test_a_backbone_sees_images_of_any_size(tmp_path: Path) -> None:
    paper = named_space("heatdetr", classes=10)
    for config in ("heatdetr-tiny", "largest"):
        space, chosen = choose_backbone(config, "heatdetr", (256, 256), classes=10)
        assert space.model_copy(update={"images": paper.images}) == paper
        assert (chosen.image, chosen.space) == ((256, 256), space.id)
        assert chosen.stages == choose(config, "heatdetr", None, stride=None, classes=10)[1].stages
    _, chosen = choose_backbone("largest", "heatdetr-nano", None, classes=3)
    assert chosen.image == (192, 192)
    path = tmp_path / "config.json"
    document = {"space": paper.model_dump(mode="json"), "config": paper.largest().model_dump(mode="json")}
    path.write_text(json.dumps(document))
    assert choose_backbone(str(path), "heatdetr", (64, 128), classes=3)[1].image == (64, 128)
    fine = paper.model_copy(update={"strides": (16,)})  # a backbone predicts nothing, at any stride
    document = {"space": fine.model_dump(mode="json"), "config": fine.largest().model_dump(mode="json")}
    path.write_text(json.dumps(document))
    assert choose_backbone(str(path), "heatdetr", (64, 128), classes=3)[1].image == (64, 128)
    with pytest.raises(InvalidConfig, match="input size 224x224: both sides must be positive multiples of 64"):
        choose_backbone("largest", "heatdetr", (224, 224), classes=3)


@pytest.mark.parametrize("content", ["{", "[]", '{"space": 1, "config": {}}', "{}"])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InvalidConfig, match=r"config\.json is not the config\.json of an answer: save one with"):
        choose(str(path), "heatdetr", None, stride=None, classes=3)


def test_what_there_is_not_is_named() -> None:
    with pytest.raises(InvalidConfig, match="config 'x' is unknown: choose one of largest, smallest, heatdetr-tiny"):
        choose("x", "heatdetr-edge", None, stride=None, classes=3)
    with pytest.raises(InvalidConfig, match="stride 64 is not in heatdetr-edge: choose 16 or 32, or another space"):
        choose("largest", "heatdetr-edge", None, stride=64, classes=3)
    with pytest.raises(InvalidConfig, match="stride 16 is not in heatdetr-nano: choose 32, or another space"):
        choose("largest", "heatdetr-nano", None, stride=16, classes=3)
    with pytest.raises(UnknownSpace, match="space 'x' is unknown"):
        choose("largest", "x", None, stride=None, classes=3)
    with pytest.raises(InvalidConfig, match=r"gone\.json cannot be read \(No such file or directory\)"):
        choose("gone.json", "heatdetr", None, stride=None, classes=3)
