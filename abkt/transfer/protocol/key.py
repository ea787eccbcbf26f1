"""The pre-shared key of a cluster's transfers. Only a node that holds it may connect."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

KEY_BYTES = (32, 4096)
VARIABLE = "ABKT_KEY_FILE"


@dataclass(frozen=True, slots=True)
class Key:
    """The secret that all nodes share, and what it is used for.

    Both ends of a connection must have the same secret and the same `encrypt`. There is no forward secrecy: the secret also decrypts
    transfers that were recorded in the past.

    Parameters
    ----------
    secret : bytes
        32 to 4096 bytes.
    encrypt : bool
        Encrypt payloads (AES-256-GCM). Without it they are only authenticated (AES-256-GMAC), and can be read on the network.

    Raises
    ------
    ValueError
        If the secret has another length.
    """

    secret: bytes = field(repr=False)
    encrypt: bool = False

    def __post_init__(self) -> None:
        least, most = KEY_BYTES
        if not least <= len(self.secret) <= most:
            raise ValueError(f"a key has {least} to {most} bytes, not {len(self.secret)}")

    @property
    def security(self) -> str:
        return "encrypted" if self.encrypt else "keyed"


def read_key(path: Path, encrypt: bool = False) -> Key:
    """The key in a file, which is all of its bytes.

    Raises ValueError, one line, if the file cannot be read, has the wrong size, or is accessible to every user.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(file).st_mode
            if not stat.S_ISREG(mode):
                raise ValueError(f"key file {path} is not a regular file")
            if mode & stat.S_IRWXO:
                raise ValueError(f"key file {path} is open to every user (mode {stat.S_IMODE(mode):04o}); chmod 600 it, and change the key")
            secret = os.read(file, KEY_BYTES[1] + 1)
        finally:
            os.close(file)
    except OSError as error:
        raise ValueError(f"key file {path}: {error.strerror or error}") from None
    try:
        return Key(secret, encrypt)
    except ValueError as error:
        raise ValueError(f"key file {path}: {error}; `head -c 32 /dev/urandom` makes one") from None


def find_key(path: str = "", encrypt: bool = False) -> Key | None:
    """The key in the file `path`, else in the file that ABKT_KEY_FILE names; None if there is neither. Raises ValueError, one line."""
    if path := path or os.environ.get(VARIABLE, ""):
        return read_key(Path(path), encrypt)
    if encrypt:
        raise ValueError(f"encryption needs a key: give key_file, or set {VARIABLE}")
    return None
