"""A parent that tests kill: it runs one child and waits, for the child or, with one that is done, for the end."""

import sys

from server.children import Children

TASKS = "tests.server.child_tasks"


def main() -> None:
    children = Children()
    if len(sys.argv) > 1:
        order = {"pids": sys.argv[1]}
        children.run(f"{TASKS}:sleep_with_grandchild", order, on_message=lambda _: None, check=lambda: None)
    else:
        told = children.run(f"{TASKS}:tell_pid", {}, on_message=lambda _: None, check=lambda: None)
        sys.stdout.write(f"{told['pid']}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
