"""A thousand damages to checkpoints of a training: refused by name, or every tensor and value loads as it was."""

import shutil
from contextlib import suppress

import numpy as np
import pytest

from tests.commands.test_kills import digest
from zfscope.networks.checkpoints import read_checkpoint


def damage(content, random):
    """One of four kinds: bits turned over, a cut, a stretch of zeros, a stretch that stands elsewhere in the file."""
    kind, content = random.integers(4), bytearray(content)
    place, length = int(random.integers(len(content))), int(2 ** random.uniform(0, 16))
    if kind == 0:
        for bit in random.integers(8, size=random.integers(1, 9)):
            content[(place + int(bit)) % len(content)] ^= 1 << int(bit)
    elif kind == 1:
        del content[place:]
    elif kind == 2:
        content[place : place + length] = bytes(len(content[place : place + length]))
    else:
        other = int(random.integers(len(content)))
        stretch = content[other : other + length]
        content[place : place + len(stretch)] = stretch
    return bytes(content)


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_refused_by_name_or_loads_as_it_was(trained_run, tmp_path, record_property, count):
    random, refused = np.random.default_rng(0), 0
    path = tmp_path / "last.ckpt"
    shutil.copy(trained_run / "checkpoints/last.ckpt", path)
    whole, expected = path.read_bytes(), digest(read_checkpoint(path))

    for _ in range(count):
        path.write_bytes(damage(whole, random))
        try:
            content = read_checkpoint(path)
        except ValueError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            refused += 1
        else:  # the padding between two tensors, a date, or bytes that were as they are
            assert digest(content) == expected

    record_property("cases", count)
    assert refused > 0.9 * count


@pytest.mark.slow
def test_control_without_checksums_damaged_checkpoints_load_with_other_values(trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr("zfscope.networks.checkpoints.check_archive", lambda path: None)
    random, path = np.random.default_rng(0), tmp_path / "last.ckpt"
    shutil.copy(trained_run / "checkpoints/last.ckpt", path)
    whole, expected, silent = path.read_bytes(), digest(read_checkpoint(path)), 0

    for _ in range(200):
        path.write_bytes(damage(whole, random))
        with suppress(Exception):  # torch's own refusals are of many kinds
            silent += digest(read_checkpoint(path)) != expected

    assert silent > 20
