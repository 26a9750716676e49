import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from supernet.conversion import read_source, recognise, with_val, write_dataset
from supernet.data_report import report_data
from supernet.dataset import CocoDataset
from supernet.errors import BadDataset, FolderTaken
from supernet.faults import Fault
from supernet.procedural import SHAPES, make_dataset
from supernet.source_data import Source, SourceFormat
from tests.supernet.coco_files import turned
from tests.supernet.foreign_data import boxes_of, voc_text, write_voc, write_yolo


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("conversion") / "shapes", images=6, size=60, seed=3, held_out=3)


@pytest.fixture
def voc(shapes: Path, tmp_path: Path) -> Path:
    return write_voc(shapes, tmp_path / "voc")


@pytest.fixture
def yolo(shapes: Path, tmp_path: Path) -> Path:
    return write_yolo(shapes, tmp_path / "yolo", names=SHAPES)


def read(folder: Path) -> Source:
    return read_source(folder, recognise(folder))


def converted(folder: Path, out: Path) -> Path:
    source = read(folder)
    assert source.faults == ()
    write_dataset(with_val(source, share=0.2, seed=0), out)
    return out


def faults(folder: Path) -> list[tuple[str, str, str]]:
    return [(str(fault.kind), fault.where, fault.text) for fault in read(folder).faults]


def _equal(found: Path, wanted: Path, split: str, *, prefix: str = "") -> None:
    theirs = {f"{prefix}{name}": boxes for name, boxes in boxes_of(wanted, split).items()}
    ours = boxes_of(found, split)
    assert list(ours) == list(theirs)
    for name, boxes in theirs.items():
        assert [kind for kind, _ in ours[name]] == [kind for kind, _ in boxes]
        for (_, one), (_, other) in zip(ours[name], boxes, strict=True):
            assert one == pytest.approx(other, abs=1e-3)


def test_a_voc_data_set_comes_back_box_by_box(voc: Path, shapes: Path, tmp_path: Path) -> None:
    assert recognise(voc) == "voc"
    out = converted(voc, tmp_path / "out")
    for split in ("train", "val"):
        _equal(out, shapes, split, prefix=f"{split}_")
    report = report_data(out)
    assert (report.faults, report.remarks) == ((), ())
    assert tuple(report.splits[0].class_boxes) == tuple(sorted(SHAPES))  # VOC lists no classes


def test_a_yolo_data_set_comes_back_box_by_box(yolo: Path, shapes: Path, tmp_path: Path) -> None:
    assert recognise(yolo) == recognise(yolo / "data.yaml") == "yolo"
    out = converted(yolo, tmp_path / "out")
    for split in ("train", "val"):
        _equal(out, shapes, split)
    report = report_data(out)
    assert (report.faults, report.remarks) == ((), ())
    assert tuple(report.splits[0].class_boxes) == SHAPES
    assert sorted(path.name for path in out.iterdir()) == ["annotations", "train", "val"]
    one, other = (CocoDataset(folder, "val", image=None) for folder in (out, shapes))
    assert np.array_equal(one[0].pixels, other[0].pixels)


def test_boxes_of_voc_are_counted_from_one_and_include_their_last_pixel(tmp_path: Path) -> None:
    folder = _one_voc(tmp_path / "voc", voc_text((40, 20), []).replace("</annotation>", _WHOLE + "</annotation>"))
    ((box,),) = (image.boxes for image in read(folder).splits["train"])
    assert (box.name, box.box, box.is_crowd) == ("cup", [0, 0, 40, 20], False)


_WHOLE = (
    "<object><name>cup</name><part><name>handle</name><bndbox><xmin>3</xmin></bndbox></part>"
    "<bndbox><xmin>1</xmin><ymin>1.0</ymin><xmax>40</xmax><ymax>20</ymax></bndbox></object>"
)


def _one_voc(folder: Path, text: str) -> Path:
    """Write a VOC folder of one image of 40x20, without any list."""
    (folder / "Annotations").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    Image.new("RGB", (40, 20)).save(folder / "JPEGImages" / "a.jpg")
    (folder / "Annotations" / "a.xml").write_text(text)
    return folder


def test_difficult_objects_of_voc_become_crowds(tmp_path: Path) -> None:
    folder = _one_voc(tmp_path / "voc", voc_text((40, 20), [("cup", [1, 2, 3, 4])], difficult=1))
    shutil.copy(folder / "JPEGImages" / "a.jpg", folder / "JPEGImages" / "b.jpg")
    shutil.copy(folder / "Annotations" / "a.xml", folder / "Annotations" / "b.xml")
    out = converted(folder, tmp_path / "out")
    data = CocoDataset(out, "train", image=None)
    assert data[0].boxes.shape == (0, 4)
    assert [note["iscrowd"] for note in data.ground_truth["annotations"]] == [1]


def test_the_one_folder_in_vocdevkit_is_found(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "VOCdevkit").mkdir()
    voc.rename(tmp_path / "VOCdevkit" / "VOC2007")
    assert len(read(tmp_path / "VOCdevkit").splits["train"]) == 6


def test_trainval_is_what_val_leaves_of_it_and_test_stays_apart(voc: Path) -> None:
    lists = voc / "ImageSets" / "Main"
    train, val = ((lists / f"{split}.txt").read_text() for split in ("train", "val"))
    first, rest = train.split("\n", 1)
    (lists / "train.txt").unlink()
    (lists / "trainval.txt").write_text(rest + val)
    (lists / "test.txt").write_text(f"{first}  1\n")  # as class lists have it
    found = read(voc)
    assert {split: len(images) for split, images in found.splits.items()} == {"train": 5, "val": 3, "test": 1}
    assert found.faults == found.remarks == ()


def test_every_fault_of_a_voc_folder_names_file_and_line(voc: Path) -> None:
    notes = voc / "Annotations"
    cup = ("cup", [1.0, 2.0, 3.0, 4.0])
    texts = {
        "train_000001": "<annotation>\n<object></annotation>",
        "train_000002": voc_text((60, 61), []),
        "train_000003": voc_text((60, 60), [cup]).replace("<name>cup</name>", ""),
        "train_000004": voc_text((60, 60), [cup, cup]).replace("<xmin>2.0", "<xmin>two", 1),
        "train_000005": voc_text((60, 60), [cup, ("cup", [9, 9, 0, 4]), ("cup", [50, 9, 20, 4])]),
    }
    for name, text in texts.items():
        (notes / f"{name}.xml").write_text(text)
    (voc / "JPEGImages" / "train_000006.png").unlink()
    val = voc / "ImageSets" / "Main" / "val.txt"
    val.write_text(f"{val.read_text()}nobody\ntrain_000005\n")
    image = voc / "JPEGImages" / "train_000006.jpg"
    assert faults(voc) == [
        ("file of the source unusable", "ImageSets/Main/val.txt:4", "nobody: there is no Annotations/nobody.xml"),
        ("image in two splits", "Annotations/train_000005.xml", "is in train and in val"),
        ("file of the source unusable", "Annotations/train_000001.xml:2", "is not XML (mismatched tag)"),
        (
            "image size other than annotated",
            "Annotations/train_000002.xml",
            "image train_000002.png is 60x60, its annotation says 60x61",
        ),
        ("annotation unusable", "Annotations/train_000003.xml:3", "object 1 lacks name"),
        (
            "box not four finite numbers",
            "Annotations/train_000004.xml:3",
            "object 1 has the box ['two', '3.0', '4.0', '6.0'], not four finite numbers",
        ),
        ("image file missing", "Annotations/train_000006.xml", f"image train_000006.jpg: {image} is missing"),
        (
            "box empty",
            "Annotations/train_000005.xml:4",
            "object 2 has the empty box [9.0, 9.0, 0.0, 4.0]: width and height must be positive",
        ),
        (
            "box partly outside its image",
            "Annotations/train_000005.xml:5",
            "object 3 has the box [50.0, 9.0, 20.0, 4.0] outside its image of 60x60",
        ),
    ]
    kept = read(voc).splits
    assert [len(image.boxes) for image in kept["train"]] == [0, 1]
    assert [box.box for box in kept["val"][-1].boxes] == [[1, 2, 3, 4], [50, 9, 10, 4]]


@pytest.mark.parametrize("names", ["2008_000001\n2008_000002\n", ""])
def test_a_test_list_without_annotations_stands_in_the_way_of_nothing(voc: Path, tmp_path: Path, names: str) -> None:
    (voc / "ImageSets" / "Main" / "test.txt").write_text(names)
    out = converted(voc, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["annotations", "train", "val"]
    count = len(names.split())
    assert read(voc).remarks == (
        f"there is no test split: none of {count} image(s) in ImageSets/Main/test.txt is annotated",
    )


def test_an_image_of_two_annotations_is_used_once(voc: Path, tmp_path: Path) -> None:
    notes, lists = voc / "Annotations", voc / "ImageSets" / "Main"
    text = voc_text((60, 60), [("cup", [1.0, 2.0, 3.0, 4.0])])
    named = text.replace("<size>", "<filename>{}.png</filename><size>")
    for name, image in zip("ABCDE", ("train_000001", "train_000002", "val_000001", "extra", "extra"), strict=True):
        (notes / f"{name}.xml").write_text(named.format(image))
    shutil.copy(voc / "JPEGImages" / "val_000001.png", voc / "JPEGImages" / "extra.png")
    train, val = ((lists / f"{split}.txt").read_text() for split in ("train", "val"))
    (lists / "train.txt").write_text(f"A\nC\nD\n{train}E\n")
    (lists / "val.txt").write_text(f"{val}B\n")
    shared, twice = "image in two splits", "image with two annotation files"
    first, second, third, extra = (
        f"its image JPEGImages/{name}.png is" for name in ("train_000001", "train_000002", "val_000001", "extra")
    )
    assert faults(voc) == [
        (twice, "Annotations/A.xml", f"{first} that of Annotations/train_000001.xml too"),
        (shared, "Annotations/C.xml", f"{third} in val too"),
        (shared, "Annotations/train_000002.xml", f"{second} in val too"),
        (twice, "Annotations/E.xml", f"{extra} that of Annotations/D.xml too"),
    ]
    source = read(voc)
    write_dataset(source, tmp_path / "out")
    assert [image.labels.stem for image in source.splits["train"]] == [
        "D",
        *(f"train_{number:06}" for number in (1, 3, 4, 5, 6)),
    ]
    report = report_data(tmp_path / "out")
    assert (report.faults, [split.images for split in report.splits]) == ((), [6, 4])


def test_annotations_in_no_list_are_remarked(voc: Path) -> None:
    (voc / "ImageSets" / "Main" / "val.txt").unlink()
    assert read(voc).remarks == ("3 file(s) in Annotations are in no list and are not used",)


def test_every_fault_of_a_yolo_folder_names_file_and_line(yolo: Path) -> None:
    lines = ["0 .5 .5 .1 .1", "3 .5 .5 .1 .1", "", "0 .5 .5 .1", "x .5 .5 .1 .1", "0 .5 .5 .1 .1", "0 .95 .5 .2 .1"]
    lines += ["1 .5 .5 .1 nan", "1 .5 .5 0 .1"]
    (yolo / "labels" / "train" / "000001.txt").write_text("\n".join(lines))
    (yolo / "images" / "val" / "000002.png").write_bytes(b"no picture")
    label = "labels/train/000001.txt"
    shape = "is neither `class cx cy w h` nor a class with a polygon"
    *found, image = faults(yolo)
    assert found == [
        ("annotation of an unknown category", f"{label}:2", "has the class 3, names has 0 to 2"),
        ("annotation unusable", f"{label}:4", f"'0 .5 .5 .1' {shape}"),
        ("annotation unusable", f"{label}:5", f"'x .5 .5 .1 .1' {shape}"),
        ("annotation repeated", f"{label}:6", "0 .5 .5 .1 .1 stands there twice"),
        (
            "box partly outside its image",
            f"{label}:7",
            "the object has the box [51.0, 27.0, 12.0, 6.0] outside its image of 60x60",
        ),
        ("annotation unusable", f"{label}:8", f"'1 .5 .5 .1 nan' {shape}"),
        (
            "box empty",
            f"{label}:9",
            "the object has the empty box [30.0, 27.0, 0.0, 6.0]: width and height must be positive",
        ),
    ]
    assert image[:2] == ("image file unreadable", "images/val/000002.png")
    assert [box.box for box in read(yolo).splits["train"][0].boxes] == [[27, 27, 6, 6], [51, 27, 9, 6]]


def test_an_image_without_a_label_file_is_background(yolo: Path) -> None:
    (yolo / "labels" / "train" / "000001.txt").unlink()
    found = read(yolo)
    assert found.faults == ()
    assert found.splits["train"][0].boxes == ()


def test_images_without_label_files_are_counted_since_they_may_be_a_mistake(yolo: Path) -> None:
    assert read(yolo).remarks == ()
    for name in ("train/000002", "train/000004", "val/000001"):
        (yolo / "labels" / f"{name}.txt").unlink()
    assert read(yolo).remarks == (
        "2 of 6 image(s) of train have no label file and count as background, such as images/train/000002.png",
        "1 of 3 image(s) of val have no label file and count as background, such as images/val/000001.png",
    )


def test_labels_that_are_nowhere_are_no_background(yolo: Path) -> None:
    (yolo / "labels").rename(yolo / "marks")
    with pytest.raises(BadDataset, match=r"none of 9 images has a label file, such as .*labels/train/000001\.txt"):
        read(yolo)


def test_the_box_around_a_polygon_counts(yolo: Path) -> None:
    (yolo / "labels" / "train" / "000001.txt").write_text("2 .1 .2 .5 .2 .3 .8")
    ((box,), *_) = (image.boxes for image in read(yolo).splits["train"])
    assert (box.name, box.box) == ("cross", [6, 12, 24, 36])


@pytest.mark.parametrize("shape", [(2, 3), (3, 2)])
def test_key_points_are_left_out_of_boxes(yolo: Path, shape: tuple[int, int]) -> None:
    points = " 0.9 0.9 0.9 0.1 0.1 0.1"
    wanted = read(yolo).splits["train"][1:]
    for split in ("train", "val"):
        for path in (yolo / "labels" / split).iterdir():
            path.write_text("".join(f"{line}{points}\n" for line in path.read_text().splitlines()))
    with (yolo / "data.yaml").open("a") as file:
        file.write(f"kpt_shape: {list(shape)}\n")
    box = "2 .5 .5 .1 .1"
    (yolo / "labels" / "train" / "000001.txt").write_text(f"{box}{points}\n{box}\n{box}{points} 1 1\n")
    first, *others = read(yolo).splits["train"]
    assert [(found.name, found.box) for found in first.boxes] == [("cross", [27, 27, 6, 6])]
    assert tuple(others) == wanted
    shape_text = "is not `class cx cy w h` with the 6 numbers of kpt_shape behind it"
    assert faults(yolo) == [
        ("annotation unusable", "labels/train/000001.txt:2", f"'{box}' {shape_text}"),
        ("annotation unusable", "labels/train/000001.txt:3", f"'{box}{points} 1 1' {shape_text}"),
    ]


@pytest.mark.parametrize("form", ["lists", "roboflow", "path"])
def test_a_yaml_file_may_say_where_images_are_in_all_usual_ways(yolo: Path, form: str) -> None:
    names = "names:\n  0: disc\n  1: ring\n  2: cross\n"
    match form:
        case "lists":
            train = sorted((yolo / "images" / "train").iterdir())
            (yolo / "train.txt").write_text("\n".join(f"./images/train/{path.name}" for path in train))
            (yolo / "val.txt").write_text("images/val/000001.png\nimages/val/000009.png\n")
            text = f"train: train.txt\nval: val.txt\n{names}"
        case "roboflow":
            text = f"train: ../images/train\nval: ../images/val\ntest: ../test/images\n{names}"
        case _:
            text = f"path: {yolo.parent}\ntrain: [yolo/images/train]\nval: yolo/images/val\n{names}"
    (yolo / "data.yaml").write_text(text)
    found = read(yolo)
    assert found.classes == SHAPES
    assert len(found.splits["train"]) == 6
    if form == "lists":
        assert [fault[:3] for fault in found.faults] == [
            ("image file missing", "images/val/000009.png is missing", "val.txt:2")
        ]
    else:
        assert (len(found.splits["val"]), found.faults) == (3, ())
    assert len(found.remarks) == (form == "roboflow")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/train\nnames: [a, b", r"data\.yaml:2 is not YAML"),
        ("train: images/train\nnames: {1: a}", "names is {1: 'a'}, neither a list nor numbered from 0 on"),
        ("train: images/train\nnames: [a, a, b]", "names are a, a, b, nc is 3: each needs a name of its own"),
        ("train: images/train\nnc: 4\nnames: [a, b]", "names are a, b, nc is 4"),
        (
            "train: images/train\nnames: [a, b]\nkpt_shape: 17",
            r"kpt_shape is 17, neither \[key points, 2\] nor \[key points, 3\]",
        ),
        ("train: images/nobody\nnames: [a, b]", "train is images/nobody, which is missing"),
        ("train: labels/train\nnames: [a, b]", "train is labels/train, where no image is"),
        ("names: [a, b]", "neither Annotations.* nor a YAML file with names and train"),
    ],
)
def test_what_a_yaml_file_lacks_is_said(yolo: Path, text: str, message: str) -> None:
    (yolo / "data.yaml").write_text(text)
    with pytest.raises(BadDataset, match=message):
        read(yolo)


def test_other_folders_are_told_apart(shapes: Path, voc: Path, yolo: Path, tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match=r"it is in COCO format already. Use it as it is: heatnas data check"):
        recognise(shapes)
    shutil.copytree(voc, tmp_path / "both")
    shutil.copytree(yolo, tmp_path / "both", dirs_exist_ok=True)
    with pytest.raises(BadDataset, match=r"it could be VOC and YOLO\. Say which with --format voc"):
        recognise(tmp_path / "both")


@pytest.mark.parametrize("form", ["voc", "yolo"])
def test_a_format_that_is_forced_is_still_looked_for(shapes: Path, form: SourceFormat) -> None:
    with pytest.raises(BadDataset, match="1 fault"):
        read_source(shapes, form)


def _without_val(yolo: Path) -> Source:
    text = (yolo / "data.yaml").read_text()
    (yolo / "data.yaml").write_text(text.replace("val: images/val\n", ""))
    return read(yolo)


def test_images_are_held_out_by_seed_and_share(yolo: Path) -> None:
    source = _without_val(yolo)
    one, same, other = (with_val(source, share=0.4, seed=seed).splits for seed in (0, 0, 1))
    assert (len(one["train"]), len(one["val"])) == (4, 2)
    assert one == same
    assert one != other
    assert {image.path for image in one["train"] + one["val"]} == {image.path for image in source.splits["train"]}
    assert len(with_val(source, share=0.001, seed=0).splits["val"]) == 1
    assert len(with_val(source, share=0.999, seed=0).splits["train"]) == 1


def test_one_image_is_too_few_to_hold_one_out(yolo: Path) -> None:
    source = _without_val(yolo)
    with pytest.raises(BadDataset, match="1 usable images cannot be split in two"):
        with_val(source._replace(splits={"train": source.splits["train"][:1]}), share=0.5, seed=0)


def test_images_are_linked_or_copied(yolo: Path, tmp_path: Path) -> None:
    source = read(yolo)
    write_dataset(source, tmp_path / "linked")
    write_dataset(source, tmp_path / "copied", copy=True)
    original = yolo / "images" / "train" / "000001.png"
    assert (tmp_path / "linked" / "train" / "000001.png").samefile(original)
    copied = tmp_path / "copied" / "train" / "000001.png"
    assert not copied.samefile(original)
    assert copied.read_bytes() == original.read_bytes()


def test_images_of_one_name_in_two_folders_stay_apart(yolo: Path, tmp_path: Path) -> None:
    for part in ("images", "labels"):
        (yolo / part / "train" / "more").mkdir()
    shutil.copy(yolo / "images" / "val" / "000001.png", yolo / "images" / "train" / "more")
    (yolo / "labels" / "train" / "more" / "000001.txt").write_text("0 .5 .5 .2 .2")
    out = converted(yolo, tmp_path / "out")
    assert (out / "train" / "more" / "000001.png").is_file()
    assert len(CocoDataset(out, "train", image=None)) == 7


def test_an_image_that_exif_turns_is_written_upright(yolo: Path, tmp_path: Path) -> None:
    path = yolo / "images" / "train" / "000007.jpg"
    picture = Image.new("RGB", (40, 20), (255, 0, 0))
    picture.paste((0, 0, 255), (20, 0, 40, 20))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # a quarter turn clockwise: the left half becomes the upper one
    picture.save(path, exif=exif)
    (yolo / "labels" / "train" / "000007.txt").write_text("0 .5 .25 1 .5")
    *_, sample = CocoDataset(converted(yolo, tmp_path / "out"), "train", image=None)
    assert sample.pixels.shape == (40, 20, 3)
    assert sample.boxes.tolist() == [[0, 0, 20, 20]]
    assert sample.pixels[2:18, :, 0].min() > 200
    assert sample.pixels[22:, :, 0].max() < 50


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_that_were_drawn_before_exif_turned_their_image_are_turned_with_it(
    tmp_path: Path, orientation: int
) -> None:
    folder = _one_voc(tmp_path / "voc", voc_text((40, 20), [("cup", [0, 0, 1, 1]), ("jar", [3, 2, 30, 9])]))
    for name in ("a", "b"):
        turned(folder / "JPEGImages" / f"{name}.png", (40, 20), orientation)
    (folder / "JPEGImages" / "a.jpg").unlink()
    shutil.copy(folder / "Annotations" / "a.xml", folder / "Annotations" / "b.xml")
    data = CocoDataset(converted(folder, tmp_path / "out"), "train", image=None)
    sample = data[0]
    assert sample.pixels.shape == ((40, 20, 3) if orientation > 4 else (20, 40, 3))
    if orientation > 4:  # a size that is the same both ways is meant upright
        left, top, right, bottom = sample.boxes[0].astype(int)
        assert (sample.pixels[top:bottom, left:right] == 255).all()
        wide, high = sample.boxes[1][2:] - sample.boxes[1][:2]
        assert (wide, high) == (9, 30)


def test_a_tiff_that_pillow_turns_keeps_its_boxes(yolo: Path, tmp_path: Path) -> None:
    turned(yolo / "images" / "train" / "000007.tif", (40, 20))
    (yolo / "labels" / "train" / "000007.txt").write_text("0 .5 .25 1 .5")
    *_, sample = CocoDataset(converted(yolo, tmp_path / "out"), "train", image=None)
    assert sample.pixels.shape == (40, 20, 3)
    assert sample.boxes.tolist() == [[0, 0, 20, 20]]


def test_bad_entries_are_counted_in_what_is_written_without_them(yolo: Path, tmp_path: Path) -> None:
    (yolo / "labels" / "train" / "000001.txt").write_text("9 .5 .5 .1 .1")
    write_dataset(read(yolo), tmp_path / "out")
    info = json.loads((tmp_path / "out" / "annotations" / "train.json").read_text())["info"]
    assert info == {
        "description": "yolo, converted from yolo",
        "left_out": {"annotation of an unknown category": 1},
    }
    assert report_data(tmp_path / "out").faults == ()


def test_a_folder_that_holds_something_is_left_alone(yolo: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(FolderTaken, match="exists and is not an empty folder: remove it or choose another one"):
        write_dataset(read(yolo), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    write_dataset(read(yolo), tmp_path / "empty")
    assert report_data(tmp_path / "empty").faults == ()


def test_a_conversion_that_is_interrupted_leaves_nothing(yolo: Path, tmp_path: Path) -> None:
    def stop(name: str, done: int, _: int) -> None:
        if (name, done) == ("writing val", 2):
            raise KeyboardInterrupt

    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        write_dataset(read(yolo), tmp_path / "out", progress=stop)
    assert sorted(tmp_path.iterdir()) == before


def test_a_source_without_any_object_has_no_classes(tmp_path: Path) -> None:
    folder = _one_voc(tmp_path / "voc", voc_text((40, 20), []))
    source = read(folder)
    with pytest.raises(BadDataset, match="no image shows any object, so there is no class"):
        write_dataset(source, tmp_path / "out")


def test_a_split_without_usable_images_is_refused_with_its_faults(yolo: Path, tmp_path: Path) -> None:
    for path in (yolo / "images" / "val").iterdir():
        path.write_bytes(b"no picture")
    source = read(yolo)
    assert all(isinstance(fault, Fault) for fault in source.faults)
    with pytest.raises(BadDataset, match=r"4 fault.*no image of val can be used") as caught:
        write_dataset(source, tmp_path / "out")
    assert str(caught.value).endswith(
        "Correct or remove these entries (`heatnas data convert` without --drop-bad shows them by kind)."
    )
