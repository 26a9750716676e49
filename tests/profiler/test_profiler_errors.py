import re

from profiler import errors


def test_drawn_tree_is_the_real_one() -> None:
    drawn: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^([│ ]*(?:[├└]── )?)([A-Z]\w+Error|[A-Z][a-z]\w*)\b", line)
        if match and ("──" in match[1] or match[2] == "ProfilerError"):
            drawn.append((len(match[1]) // 4, match[2]))
    assert drawn == walk(errors.ProfilerError, 0)


def walk(kind: type, depth: int) -> list[tuple[int, str]]:
    below = [entry for child in kind.__subclasses__() for entry in walk(child, depth + 1)]
    return [(depth, kind.__name__), *below]
