"""The pre-shared key of a cluster's transfers: who holds it may speak, and nobody else."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

KEY_BYTES = (32, 4096)
VARIABLE = "ABKT_KEY_FILE"


@dataclass(frozen=True, slots=True)
class Key:
    """secret: at least 32 bytes, the same on all nodes. encrypt: payloads are hidden too; without, they are only protected from change.

    Both ends must have the same secret and the same `encrypt`. Who learns the secret can read the encrypted transfers of the past.
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
    """The bytes of a file, all of them. Raises ValueError, one line, if it cannot be read, or others than owner and group could."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(file).st_mode
            if not stat.S_ISREG(mode):
                raise ValueError(f"key file {path} is no regular file")
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
    """The key of `path`, or else of the file that ABKT_KEY_FILE names, or none. Raises ValueError, one line."""
    if path := path or os.environ.get(VARIABLE, ""):
        return read_key(Path(path), encrypt)
    if encrypt:
        raise ValueError(f"encryption needs a key: give key_file, or set {VARIABLE}")
    return None
