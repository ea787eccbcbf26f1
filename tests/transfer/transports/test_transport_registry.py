"""Transports by name. Making a transport imports its module; an unknown name or an impossible pacing is refused in one line."""

import os
import subprocess
import sys

import pytest

import abkt.net
import abkt.transfer
from abkt.transfer import protocol, receive, send, transports
from abkt.transfer.transports.registry import TRANSPORTS, check_transport, listening_address, make_transport
from abkt.transfer.transports.tcp import Tcp


def test_naming_transports_imports_none_of_them():
    code = "import sys; from abkt.transfer import make_transport, Sender, Transport; print(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout.split()
    assert "abkt.transfer.transports.registry" in loaded
    assert not {"torch", "numpy", *(path.partition(":")[0] for path in TRANSPORTS.values())} & set(loaded)


@pytest.mark.parametrize("name", TRANSPORTS)
def test_each_transport_is_made_or_says_in_one_line_what_is_missing(name):
    missing = ""
    try:
        made = make_transport(name)
        assert callable(made.connect)
        assert callable(made.listen)
    except ValueError as error:
        missing = str(error)
    assert not missing or name in ("nixl", "cuda_ipc")
    assert "\n" not in missing


def test_an_unknown_name_or_an_impossible_pacing_is_refused():
    assert isinstance(make_transport("tcp"), Tcp)
    for make in (make_transport, check_transport):
        with pytest.raises(ValueError, match="transport is 'pigeon'; it must be one of tcp, unix, shm, nixl, cuda_ipc"):
            make("pigeon")
    with pytest.raises(ValueError, match="transport shm does not go with pacing=tbf"):
        check_transport("shm", "tbf")
    check_transport("tcp", "tbf")


def test_each_transport_has_its_listening_address():
    assert listening_address("tcp", "127.0.0.1", "/tmp/sockets", "decode-0") == "127.0.0.1:0"
    assert listening_address("shm", "127.0.0.1", "/tmp/sockets", "decode-0") == "/tmp/sockets/decode-0.sock"


@pytest.mark.parametrize("package", [abkt.transfer, protocol, send, receive, transports, abkt.net], ids=lambda package: package.__name__)
def test_every_exported_name_can_be_imported(package):
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = package.Nothing
