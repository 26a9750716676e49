"""Which config of which space a user means by a few words, or by the file of an answer."""

import json
from pathlib import Path

from pydantic import ValidationError

from nas.config import Config
from nas.errors import InvalidConfig
from nas.named import CONFIG_NAMES, named_config, named_space
from nas.space import SearchSpace


def choose(
    config: str, space: str, image: tuple[int, int] | None, *, stride: int | None, classes: int
) -> tuple[SearchSpace, Config]:
    """Return a config and its space, for a number of classes.

    Args:
        config: `largest` or `smallest` of the space, a detector of Table 3, or the path of an answer's `config.json`.
        space: name of the space; the file of an answer brings its own.
        image: input size (height, width); None for the largest of the space, or that of the answer.
        stride: of the prediction map; None for what the config has by itself.
        classes: object classes of the head.

    Raises:
        InvalidConfig: there is no such config, or it cannot have this input size or stride.
        UnknownSpace: no space has this name.
    """
    if config.endswith(".json"):
        found, chosen = _from_file(Path(config), image, classes)
    else:
        found = named_space(space, classes=classes)
        chosen = _by_name(config, found, image)
    return found, chosen if stride is None else found.with_stride(chosen, stride)


def choose_backbone(
    config: str, space: str, image: tuple[int, int] | None, *, classes: int
) -> tuple[SearchSpace, Config]:
    """Return a config whose backbone is meant, and its space, at any input size: it sees no detector's images yet.

    Raises:
        InvalidConfig: there is no such config, or it cannot have this input size.
        UnknownSpace: no space has this name.
    """
    found, chosen = choose(config, space, None, stride=None, classes=classes)
    if image is None or image == chosen.image:
        return found, chosen
    resized = found.at(image)
    return resized, resized.check(chosen.model_copy(update={"space": resized.id, "image": image}))


def _by_name(config: str, space: SearchSpace, image: tuple[int, int] | None) -> Config:
    if config == "largest":
        return space.largest(image)
    if config == "smallest":
        return space.smallest(space.input_size(image))
    if config in CONFIG_NAMES:
        return space.check(named_config(config, space, image=space.input_size(image)))
    known = ", ".join(("largest", "smallest", *CONFIG_NAMES))
    raise InvalidConfig(f"config {config!r} is unknown: choose one of {known}, or the config.json of an answer")


def _from_file(path: Path, image: tuple[int, int] | None, classes: int) -> tuple[SearchSpace, Config]:
    try:
        document = json.loads(path.read_bytes())
        space = SearchSpace.model_validate(document["space"])
        config = space.check(Config.model_validate(document["config"]))
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be read ({error.strerror}): name the config.json of an answer") from error
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise InvalidConfig(
            f"{path} is not the config.json of an answer: save one with `heatnas show JOB --save FOLDER`"
        ) from error
    space = space.model_copy(update={"structure": space.structure.model_copy(update={"classes": classes})})
    size = config.image if image is None else space.input_size(image)
    return space, space.check(config.model_copy(update={"space": space.id, "image": size}))
