"""A parent that tests kill: it runs one child and waits for it."""

import sys

from server.children import run_child


def main() -> None:
    run_child(
        "tests.server.child_tasks:sleep_with_grandchild",
        {"pids": sys.argv[1]},
        on_message=lambda _: None,
        check=lambda: None,
    )


if __name__ == "__main__":
    main()
