"""Search spaces: what may vary in a HeatDETR, and the rules every config keeps."""

from collections.abc import Iterable, Iterator
from itertools import pairwise, product
from typing import Literal, Self

from pydantic import Field, model_validator

from nas.blocks import GLOBAL_KINDS, LOCAL_KINDS, PREDICTION_STRIDE, Block, Kind
from nas.config import Config, Stage
from nas.errors import InvalidConfig
from nas.network import Site, Structure, sites
from nas.values import Value

WIDTH_STEP = 32
"""Widths are multiples of 32 (paper section 4.3, step 2)."""

IMAGE_STEP = 64
"""Input sides are multiples of 64, so that every map down to stride 64 is whole."""


class StageChoices(Value):
    """What may vary in one stage.

    Attributes:
        slots: number of HeatPaths N_j.
        widths: legal widths, ascending; the first is the floor of the space.
        local_kinds: candidates of each slot besides the identity (paper eq. 7).
        global_kinds: candidates of the block that closes the stage.
    """

    slots: int = Field(ge=1, le=18)
    widths: tuple[int, ...] = Field(min_length=1)
    local_kinds: tuple[Kind, ...] = LOCAL_KINDS
    global_kinds: tuple[Kind, ...] = (Kind.XCA,)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for width in self.widths:
            if width <= 0 or width % WIDTH_STEP:
                raise ValueError(f"width {width} is not a positive multiple of {WIDTH_STEP}: use {_nearest(width)}")
        if list(self.widths) != sorted(set(self.widths)):
            raise ValueError(f"widths {self.widths} must ascend without repeats: sort them")
        if not set(self.local_kinds) <= set(LOCAL_KINDS) or not self.local_kinds:
            raise ValueError(f"local_kinds {self.local_kinds} must be some of {[k.value for k in LOCAL_KINDS]}")
        if not set(self.global_kinds) <= set(GLOBAL_KINDS) or not self.global_kinds:
            raise ValueError(f"global_kinds {self.global_kinds} must be some of {[k.value for k in GLOBAL_KINDS]}")
        for kinds in (self.local_kinds, self.global_kinds):
            if len(set(kinds)) < len(kinds):
                raise ValueError(f"kinds {', '.join(kinds)} repeat: name each once")
        return self


class SearchSpace(Value):
    """A family of HeatDETR configs around one supernet (the largest config).

    Attributes:
        name: what people call it.
        structure: what all its detectors share.
        stages: the choices of the four stages.
        images: legal input sizes (height, width) in pixels, ascending by area.
        strides: legal strides of the prediction map, ascending; None for 32 alone.
    """

    name: str
    structure: Structure
    stages: tuple[StageChoices, StageChoices, StageChoices, StageChoices]
    images: tuple[tuple[int, int], ...] = Field(min_length=1)
    strides: tuple[Literal[16]] | tuple[Literal[16], Literal[32]] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for height, width in self.images:
            if not _has_whole_maps((height, width)):
                raise ValueError(f"input size {height}x{width}: both sides must be positive multiples of {IMAGE_STEP}")
        if list(self.images) != sorted(self.images, key=lambda size: size[0] * size[1]):
            raise ValueError(f"images {self.images} must ascend by area: sort them")
        for number, (low, high) in enumerate(pairwise(self.stages), start=1):
            for end, here, after in (
                ("narrowest", low.widths[0], high.widths[0]),
                ("widest", low.widths[-1], high.widths[-1]),
            ):
                if here > after:
                    raise ValueError(
                        f"stage {number} is {here} wide at its {end} and stage {number + 1} only {after}: neither the "
                        f"narrowest nor the widest config may fall in width, raise stage {number + 1} to {here}"
                    )
        if self.structure.sam_width is not None and any(len(choices.widths) > 1 for choices in self.stages):
            raise ValueError(
                f"sam_width {self.structure.sam_width} needs stages of one width each, since entries then depend on "
                "stages two apart: name one width a stage, or leave it out"
            )
        sparse = any(Kind.SPARSE_ATTENTION in choices.global_kinds for choices in self.stages)
        if (sparse or self.structure.has_sparse_attention) != (self.structure.keep < 1):
            rule = "below 1 with sparse_attention, so that it leaves tokens out, and 1 without"
            raise ValueError(f"keep {self.structure.keep} must be {rule}: change it or the kinds")
        return self

    @property
    def prediction_strides(self) -> tuple[int, ...]:
        """Legal input pixels between two cells of the prediction map, ascending."""
        return self.strides or (PREDICTION_STRIDE,)

    def largest(self, image: tuple[int, int] | None = None) -> Config:
        """Return the config with every slot filled at full width and the finest prediction map: the supernet's frame.

        Slots hold their first kind.
        """
        return self._extreme(self.input_size(image), widest=True)

    def smallest(self, image: tuple[int, int] | None = None) -> Config:
        """Return the config with the narrowest stages, one local block in each and the coarsest prediction map."""
        return self._extreme(image or self.images[0], widest=False)

    def input_size(self, image: tuple[int, int] | None) -> tuple[int, int]:
        """Return a legal input size (height, width) in pixels: the one asked for, or the largest of the space.

        Raises:
            InvalidConfig: the space has no such size.
        """
        if image is None:
            return self.images[-1]
        if image not in self.images:
            legal = ", ".join(f"{height}x{width}" for height, width in self.images)
            raise InvalidConfig(f"input size {image[0]}x{image[1]} is not in {self.name}: choose one of {legal}")
        return image

    def at(self, image: tuple[int, int]) -> Self:
        """Return the space with one input size (height, width), its own or another: no weight depends on it.

        Raises:
            InvalidConfig: a side is no positive multiple of 64.
        """
        if not _has_whole_maps(image):
            rule = f"both sides must be positive multiples of {IMAGE_STEP}, such as 256x256"
            raise InvalidConfig(f"input size {image[0]}x{image[1]}: {rule}")
        return self.model_copy(update={"images": (image,)})

    def sites(self, config: Config) -> tuple[Site, ...]:
        """Walk the config's network: blocks with their names and inputs, in execution order."""
        return sites(self.structure, config)

    def blocks(self, config: Config) -> tuple[Block, ...]:
        """List the blocks of the config's network in execution order, repeats included."""
        return tuple(site.block for site in self.sites(config))

    def check(self, config: Config) -> Config:
        """Return the config, or raise `InvalidConfig` naming the value, the rule and the next action."""
        if config.space != self.id:
            raise InvalidConfig(
                f"config belongs to space {config.space}, not to {self.name} ({self.id}): use its own space"
            )
        self.input_size(config.image)
        self._check_stride(config.prediction_stride)
        for number, (stage, choices) in enumerate(zip(config.stages, self.stages, strict=True), start=1):
            _check_stage(number, stage, choices)
        for number, (low, high) in enumerate(pairwise(config.widths), start=1):
            if low > high:
                raise InvalidConfig(
                    f"stage {number} is {low} wide and stage {number + 1} only {high}: widths must not fall, "
                    f"narrow stage {number} first"
                )
        return config

    def with_stride(self, config: Config, stride: int) -> Config:
        """Return the config with another stride of its prediction map.

        Raises:
            InvalidConfig: the space has no such stride.
        """
        self._check_stride(stride)
        return config.model_copy(update={"stride": _field_of(stride)})

    def contains(self, config: Config) -> bool:
        """Tell whether `check` would accept the config."""
        try:
            self.check(config)
        except InvalidConfig:
            return False
        return True

    def moves(self, config: Config) -> Iterator[tuple["Move", Config]]:
        """Yield every legal single reduction.

        One local block removed, one stage narrowed (the widest first), or a coarser prediction map.

        Raises:
            InvalidConfig: the config is not one of the space.
        """
        self.check(config)
        for index, (stage, choices) in enumerate(zip(config.stages, self.stages, strict=True)):
            for slot, kind in enumerate(stage.slots):
                if kind is not Kind.IDENTITY and stage.depth > 1:
                    slots = (*stage.slots[:slot], Kind.IDENTITY, *stage.slots[slot + 1 :])
                    emptied = stage.model_copy(update={"slots": slots})
                    yield Move(stage=index + 1, slot=slot, kind=kind), config.with_stage(index, emptied)
            floor = config.widths[index - 1] if index else 0
            for width in reversed(choices.widths):
                if floor <= width < stage.width:
                    narrowed = stage.model_copy(update={"width": width})
                    yield Move(stage=index + 1, width=width), config.with_stage(index, narrowed)
        for stride in self.prediction_strides:
            if stride > config.prediction_stride:
                yield Move(stride=stride), self.with_stride(config, stride)

    def all_blocks(self, image: tuple[int, int] | None = None) -> tuple[Block, ...]:
        """List every distinct block a config may need (at one input size, or at all): the rows a table must hold.

        Raises:
            InvalidConfig: the space has no such input size.
        """
        images = (self.input_size(image),) if image else self.images
        found: dict[Block, None] = {}
        for size in images:
            for config in self.covering_configs(size):
                found.update(dict.fromkeys(self.blocks(config)))
        return tuple(found)

    def covering_configs(self, image: tuple[int, int]) -> Iterator[Config]:
        """Yield configs in which every pair of adjacent widths, every kind, stride and received layout occurs.

        A block depends on no more than two adjacent widths (`Site.stage`), the layout it receives and the stride of the
        prediction map; those in slots on one width alone. So these few configs meet every block of the space.
        """
        pairs = [
            (index, low, high)
            for index in range(3)
            for low, high in product(self.stages[index].widths, self.stages[index + 1].widths)
            if low <= high
        ]
        around = dict.fromkeys(self._widths_around(*pair) for pair in pairs)
        for stride, widths in product(self.prediction_strides, around):
            yield self._config(image, self._filled(widths, turn=0), stride)
        patterns = max(len(_patterns(choices)) for choices in self.stages)
        for widths, turn in product(self._widths_in_turn(), range(1, patterns)):
            yield self._config(image, self._filled(widths, turn=turn), self.prediction_strides[0])

    def _filled(self, widths: tuple[int, ...], *, turn: int) -> list[Stage]:
        """Return stages of these widths with the slot contents whose turn it is."""
        stages = []
        for width, choices in zip(widths, self.stages, strict=True):
            patterns = _patterns(choices)
            slots, global_kind = patterns[turn % len(patterns)]
            stages.append(Stage(width=width, slots=slots, global_kind=global_kind))
        return stages

    def _widths_in_turn(self) -> Iterable[tuple[int, ...]]:
        """Return widths of all stages among which each width of each stage occurs."""
        found: dict[tuple[int, ...], None] = {}
        for index, choices in enumerate(self.stages):
            for width in choices.widths:
                if index < 3:
                    other = min(one for one in self.stages[index + 1].widths if one >= width)
                    around = self._widths_around(index, width, other)
                else:
                    around = self._widths_around(2, max(one for one in self.stages[2].widths if one <= width), width)
                found[around] = None
        return found

    def _widths_around(self, index: int, low: int, high: int) -> tuple[int, ...]:
        """Return legal widths of all stages with `low` and `high` in two: floors and ceilings never fall."""
        widths = {index: low, index + 1: high}
        for stage in range(index - 1, -1, -1):
            widths[stage] = max(width for width in self.stages[stage].widths if width <= widths[stage + 1])
        for stage in range(index + 2, 4):
            widths[stage] = min(width for width in self.stages[stage].widths if width >= widths[stage - 1])
        return tuple(widths[stage] for stage in range(4))

    def _check_stride(self, stride: int) -> None:
        if stride not in self.prediction_strides:
            legal = " or ".join(map(str, self.prediction_strides))
            raise InvalidConfig(f"stride {stride} is not in {self.name}: choose {legal}, or another space")

    def _extreme(self, image: tuple[int, int], *, widest: bool) -> Config:
        stages = []
        for choices in self.stages:
            kind = choices.local_kinds[0]
            depth = choices.slots if widest else 1
            slots = (kind,) * depth + (Kind.IDENTITY,) * (choices.slots - depth)
            width = choices.widths[-1 if widest else 0]
            stages.append(Stage(width=width, slots=slots, global_kind=choices.global_kinds[0]))
        return self.check(self._config(image, stages, self.prediction_strides[0 if widest else -1]))

    def _config(self, image: tuple[int, int], stages: list[Stage], stride: int) -> Config:
        first, second, third, fourth = stages
        return Config(space=self.id, image=image, stages=(first, second, third, fourth), stride=_field_of(stride))


class Move(Value):
    """One reduction: the local block of a slot removed, a stage narrowed, or a coarser prediction map.

    Attributes:
        stage: 1..4, or None for the prediction map.
        slot: the emptied slot (0-based), or None where no block is removed.
        kind: what stood in the slot.
        width: the new width, or None where no stage is narrowed.
        stride: the new stride of the prediction map, or None where it stays.
    """

    stage: int | None = None
    slot: int | None = None
    kind: Kind | None = None
    width: int | None = None
    stride: int | None = None

    @property
    def label(self) -> str:
        """The move in words."""
        if self.stride is not None:
            return f"predict at stride {self.stride}"
        if self.width is not None:
            return f"narrow stage {self.stage} to {self.width}"
        return f"remove {self.kind} from stage {self.stage} slot {self.slot}"


def _patterns(choices: StageChoices) -> list[tuple[tuple[Kind, ...], Kind]]:
    """List slot contents (with the global kind after them) that show each kind each layout it can receive."""

    def padded(*kinds: Kind) -> tuple[Kind, ...]:
        return kinds + (Kind.IDENTITY,) * (choices.slots - len(kinds))

    singles = [padded(kind) for kind in choices.local_kinds]
    pairs = [padded(*pair) for pair in product(choices.local_kinds, repeat=2)] if choices.slots > 1 else []
    return [(slots, global_kind) for slots in singles + pairs for global_kind in choices.global_kinds]


def _check_stage(number: int, stage: Stage, choices: StageChoices) -> None:
    if stage.width not in choices.widths:
        rule = f"a multiple of {WIDTH_STEP}" if stage.width % WIDTH_STEP else "one of the space's widths"
        raise InvalidConfig(
            f"stage {number} width {stage.width} is not {rule}: choose one of {', '.join(map(str, choices.widths))}"
        )
    if len(stage.slots) != choices.slots:
        raise InvalidConfig(
            f"stage {number} has {len(stage.slots)} slots, the space {choices.slots}: fill the rest with identity"
        )
    for slot, kind in enumerate(stage.slots):
        if kind is not Kind.IDENTITY and kind not in choices.local_kinds:
            raise InvalidConfig(
                f"stage {number} slot {slot} holds {kind}: choose one of "
                f"{', '.join(choices.local_kinds)} or {Kind.IDENTITY}"
            )
    if stage.depth == 0:
        raise InvalidConfig(f"stage {number} has no local block left: keep at least one")
    if stage.global_kind not in choices.global_kinds:
        raise InvalidConfig(
            f"stage {number} closes with {stage.global_kind}: choose one of {', '.join(choices.global_kinds)}"
        )


def _field_of(stride: int) -> Literal[16] | None:
    """Return what stands for a stride in a config."""
    return 16 if stride == 16 else None


def _has_whole_maps(image: tuple[int, int]) -> bool:
    return all(side > 0 and side % IMAGE_STEP == 0 for side in image)


def _nearest(width: int) -> int:
    return max(WIDTH_STEP, round(width / WIDTH_STEP) * WIDTH_STEP)
