"""The file that the key is read from, and the files that are refused."""

import os

import pytest

from abkt.transfer.protocol.key import Key, find_key, read_key


@pytest.fixture
def key_file(tmp_path, monkeypatch):
    monkeypatch.delenv("ABKT_KEY_FILE", raising=False)
    path = tmp_path / "key"
    path.write_bytes(bytes(range(32)))
    path.chmod(0o600)
    return path


def test_a_key_consists_of_the_bytes_of_its_file(key_file):
    assert read_key(key_file) == Key(bytes(range(32)))
    assert find_key(str(key_file), encrypt=True) == Key(bytes(range(32)), encrypt=True)


def test_the_environment_names_the_file_if_no_path_is_given(key_file, monkeypatch):
    assert find_key() is None
    monkeypatch.setenv("ABKT_KEY_FILE", str(key_file))
    assert find_key() == Key(bytes(range(32)))
    with pytest.raises(ValueError, match="other: No such file"):
        find_key(str(key_file.parent / "other"))


def test_encryption_without_a_key_is_refused(key_file):
    with pytest.raises(ValueError, match="encryption needs a key: give key_file, or set ABKT_KEY_FILE"):
        find_key(encrypt=True)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o666])
def test_a_file_open_to_every_user_is_refused(key_file, mode):
    key_file.chmod(mode)
    with pytest.raises(ValueError, match=f"is open to every user \\(mode 0{mode:o}\\); chmod 600 it") as error:
        read_key(key_file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 31, 4097, 100_000])
def test_a_file_of_the_wrong_size_is_refused(key_file, size):
    key_file.write_bytes(bytes(size))
    with pytest.raises(ValueError, match=r"a key has 32 to 4096 bytes, not \d+; `head -c 32"):
        read_key(key_file)


def test_a_path_that_is_not_a_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(0o700)
    for name in ("pipe", "folder"):
        with pytest.raises(ValueError, match="is not a regular file"):
            read_key(tmp_path / name)


def test_the_secret_is_not_in_the_repr():
    assert "kkkk" not in repr(Key(b"k" * 32))
