import socket
from pathlib import Path

import pytest

from server.errors import PortTaken
from server.serving import _listen
from server.settings import Settings


def test_answers_do_not_wait_for_acknowledgements(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with _listen(Settings(data=tmp_path, port=port)) as listening:
        assert listening.proto == socket.IPPROTO_TCP  # what asyncio looks at before it sets TCP_NODELAY


def test_an_address_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = rf"cannot listen on 127.0.0.1:{port} \(Address already in use\): stop what runs there"
        with pytest.raises(PortTaken, match=message):
            _listen(Settings(data=tmp_path, port=port))
