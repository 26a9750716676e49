import io


class Terminal(io.StringIO):
    """What a command writes, on a terminal."""

    def isatty(self) -> bool:
        return True
