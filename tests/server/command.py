"""The command `heatnas`, run in this process or in one of its own."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from server.cli import main

BARE = {name: value for name, value in os.environ.items() if not name.startswith("HEATNAS_")}

Done = subprocess.CompletedProcess[str]


def heatnas(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> Done:
    """Run the command as its entry point does, without the seconds that a process takes to import everything."""
    command = ["heatnas", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    on_term = signal.getsignal(signal.SIGTERM)
    code: object = 0
    try:
        with (
            pytest.MonkeyPatch.context() as changed,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            changed.setattr(sys, "argv", command)
            for name in os.environ.keys() - BARE.keys():
                changed.delenv(name)
            for name, value in (environment or {}).items():
                changed.setenv(name, value)
            main()
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        signal.signal(signal.SIGTERM, on_term)
    assert isinstance(code, int)
    return Done(command, code, out.getvalue(), err.getvalue())


def heatnas_process(*arguments: str | Path) -> Done:
    """Run the command in a process of its own, every warning an error."""
    command = [sys.executable, "-W", "error", "-m", "server.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=BARE, check=False, timeout=120)
