import re

from lookup_tables import errors


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = re.findall(r"^([│ ]*(?:[├└]── )?)(\w+)", errors.__doc__ or "", re.MULTILINE)
    drawn = [(len(indent) // 4, name) for indent, name in drawn if hasattr(errors, name)]
    assert drawn == walk(errors.TablesError)


def walk(cls: type[Exception], depth: int = 0) -> list[tuple[int, str]]:
    return [(depth, cls.__name__), *(line for child in cls.__subclasses__() for line in walk(child, depth + 1))]
