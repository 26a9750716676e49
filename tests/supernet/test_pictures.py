from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from supernet.errors import UnreadableImage
from supernet.image_files import read_picture
from supernet.pictures import stretch, to_rgb

RAMP = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)


def test_sixteen_bits_are_not_all_white(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "deep.png")
    pixels = read_picture(tmp_path / "deep.png")
    assert pixels.dtype == np.uint8
    assert pixels[..., 0].tolist() == (RAMP >> 8).tolist()
    assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "RGB"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    pixels = to_rgb(Image.new("RGB", (5, 3), "white").convert(mode))
    assert pixels.shape == (3, 5, 3)
    assert (pixels == 255).all()


def test_transparency_is_left_out_as_in_training() -> None:
    assert to_rgb(Image.new("RGBA", (1, 1), (9, 8, 7, 0))).tolist() == [[[9, 8, 7]]]


def test_a_camera_held_upright_gives_an_upright_image(tmp_path: Path) -> None:
    picture = Image.new("RGB", (6, 4), "black")
    picture.putpixel((0, 0), (255, 255, 255))
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    pixels = read_picture(tmp_path / "turned.png")
    assert pixels.shape == (6, 4, 3)
    assert pixels[0, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [("no.png", None, "it does not exist"), ("text.png", b"no image", "cannot identify image file")],
)
def test_what_is_no_image_is_named(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_picture(tmp_path / name)
    assert str(caught.value).count(str(tmp_path / name)) == 1


def test_half_a_file_and_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:4000])
    with pytest.raises(UnreadableImage, match="truncated"):
        read_picture(tmp_path / "half.png")
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UnreadableImage, match="floating-point numbers: save it with 8 or 16 bits"):
        read_picture(tmp_path / "float.tif")


def test_a_file_at_which_pillow_itself_stumbles_is_named_all_the_same(tmp_path: Path) -> None:
    Image.new("F", (9, 9)).save(tmp_path / "stack.spi", "SPIDER")
    content = bytearray((tmp_path / "stack.spi").read_bytes())
    content[26 * 4 : 27 * 4] = np.float32(1).tobytes()  # an image of a stack, of which nothing says where it begins
    (tmp_path / "stack.jpg").write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"stack\.jpg is no image that can be read: .*has no attribute"):
        read_picture(tmp_path / "stack.jpg")


def test_an_image_is_stretched_to_height_and_width() -> None:
    assert stretch(np.zeros((10, 30, 3), np.uint8), (64, 32)).shape == (64, 32, 3)
