"""Checkpoints of strangers: nothing in them runs, and none takes more memory than it has bytes."""

import io
import os
import pickle
import resource
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from zfscope.networks.archives import check_archive
from zfscope.networks.checkpoints import read_checkpoint


class Call:
    """Pickled as a call of a function with these arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Stored:
    """Pickled as the numbers of an entry, however many are said to be there."""

    def __init__(self, count, kind=torch.FloatStorage, key="0"):
        self.identity = ("storage", kind, key, "cpu", count)


class Pickler(pickle.Pickler):
    def persistent_id(self, item):
        return item.identity if isinstance(item, Stored) else None


def pickled(content):
    file = io.BytesIO()
    Pickler(file, 2).dump(content)
    return file.getvalue()


def archive(path, content, entries=(("model/data/0", bytes(16)),), **options):
    """A file as ``torch.save`` lays it out, with a pickle of one's own."""
    data = content if isinstance(content, bytes) else pickled(content)
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, value in (
            ("model/data.pkl", data),
            ("model/byteorder", b"little"),
            ("model/version", b"3\n"),
            *entries,
        ):
            file.writestr(name, value)
    return path


def tensor(storage, offset=0, size=(4,), stride=(1,)):
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


def nested(depth, item):
    for _ in range(depth):
        item = [item]
    return item


def doubled(times):
    item = [0]
    for _ in range(times):
        item = [item, item]
    return item


ENDLESS = b"\x80\x02]q\x00h\x00a."
MEMO = b"\x80\x02]r\xff\xff\xff\x7f."  # a place in a table with two thousand million of them
HOSTILE = {
    "strides of 0": ({"a": tensor(Stored(4), size=(10**12,), stride=(0,))}, r"repeat few numbers, such as one of 1000"),
    "a tensor that overlaps itself": ({"a": tensor(Stored(4), size=(3, 3), stride=(1, 0))}, "repeat few numbers"),
    "many views of a few numbers": ([tensor(Stored(4)) for _ in range(99)], "repeat few numbers, such as one of 4"),
    "a storage larger than it is": ({"a": tensor(Stored(10**12), size=(10**12,))}, "has 16 bytes where it says"),
    "a storage that is negative": ({"a": tensor(Stored(-4))}, "has 16 bytes where it says that -16 are"),
    "a size beyond the storage": ({"a": tensor(Stored(4), size=(5,))}, "of 5 that reaches beyond its 4 numbers"),
    "an offset beyond the storage": ({"a": tensor(Stored(4), 2)}, "reaches beyond its 4 numbers"),
    "a stride beyond the storage": ({"a": tensor(Stored(4), size=(2,), stride=(9,))}, "reaches beyond its 4 numbers"),
    "a negative stride": ({"a": tensor(Stored(4), 3, (4,), (-1,))}, "was not written by torch.save, or is damaged"),
    "a storage that is not there": ({"a": tensor(Stored(4, key="9"))}, "was not written by torch.save, or is damaged"),
    "a constructor": ({"a": Call(torch.FloatTensor, 10**12)}, "there is a torch.FloatTensor in it"),
    "a table of bytes": ({"a": Call(bytearray, 10**12)}, "there is a builtins.bytearray in it"),
    "on no device": ({"a": Call(torch._utils._rebuild_meta_tensor_no_storage, torch.float32)}, "no_storage in it"),
    "a foreign function": ({"a": Call(os.makedirs, "made")}, "there is a posix.mkdir|os.makedirs in it"),
    "a foreign function within a tensor": ({"a": tensor(Call(os.makedirs, "made"))}, "os.makedirs in it"),
    "another codec": ({"a": Call(__import__("_codecs").encode, "x", "zip")}, "was not written by torch.save"),
    "lists within lists": ({"a": nested(400, 0)}, "nested too deeply"),
    "lists that double": ({"a": doubled(64)}, "containers in containers without end"),
    "a list that holds itself": (ENDLESS, "containers in containers without end"),
    "a table without end": (MEMO, "holds a list, not a checkpoint's dictionary"),
    "no pickle": (b"\x80\x02}", "was not written by torch.save, or is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_of_a_stranger_runs_nothing_and_asks_for_no_memory(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE[case]
    path = archive(tmp_path / "model.ckpt", content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(ValueError, match=f"^{path}.*({message})") as told:
        read_checkpoint(path)

    assert "\n" not in str(told.value)
    assert not (tmp_path / "made").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_control_the_calls_in_such_a_file_are_made_where_it_is_read_as_torch_would(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, _ = HOSTILE["a foreign function"]

    torch.load(archive(tmp_path / "model.ckpt", content), weights_only=False)

    assert (tmp_path / "made").is_dir()


WEIGHTS = {"a": tensor(Stored(4))}


@pytest.mark.parametrize(
    ("entries", "options", "message"),
    [
        ([("model/data/0", bytes(16)), ("model/DATA.PKL", b"\x80\x02}.")], {}, "was not written by torch.save"),
        ([("model/data/0", bytes(16)), ("other/data.pkl", b"\x80\x02}.")], {}, "was not written by torch.save"),
        ([("model/data/0", bytes(10**6))], {"compression": zipfile.ZIP_DEFLATED}, "in it is compressed"),
    ],
    ids=["two pickles but for case", "two folders", "compressed"],
)
def test_an_archive_that_two_readers_see_otherwise_is_refused(tmp_path, entries, options, message):
    path = archive(tmp_path / "model.ckpt", WEIGHTS, entries, **options)

    with pytest.raises(ValueError, match=message):
        read_checkpoint(path)


def test_entries_that_share_their_bytes_are_refused_before_they_are_read(tmp_path):
    path = archive(
        tmp_path / "model.ckpt", WEIGHTS, [(f"model/data/{key}", bytes(10**6 if key == 0 else 9)) for key in range(9)]
    )
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    for start in (place for place in range(directory, len(content)) if content[place : place + 4] == b"PK\x01\x02"):
        content[start + 20 : start + 28] = struct.pack("<II", 10**6, 10**6)  # each is said to be a megabyte
    path.write_bytes(content)

    with pytest.raises(ValueError, match="was not written by torch.save, or is damaged"):
        check_archive(path)


def test_all_that_torch_saves_of_a_state_dict_is_taken(tmp_path):
    module = nn.Linear(3, 2)
    module.weight.kind = "kept"  # a parameter with a state
    tied = torch.arange(12.0).view(3, 4)
    content = {
        **{str(dtype): torch.ones(3).to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.uint8)},
        **{str(dtype): torch.ones(3).to(dtype) for dtype in (torch.float64, torch.bool, torch.complex64, torch.uint16)},
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "parameter": module.weight,
        "tied": [tied, tied, tied.t(), tied[1:, ::2]],
        "empty": torch.zeros(0),
        "scalar": torch.tensor(3.0),
        "plain": [torch.Size([1]), torch.float32, torch.device("cpu"), b"bytes", {1, 2}, 1.5, None, "Ελλάς", (1, 2j)],
        "ordered": module.state_dict(),
    }
    torch.save(content, tmp_path / "model.pt")

    read = read_checkpoint(tmp_path / "model.pt")

    torch.testing.assert_close(read["tied"], content["tied"], rtol=0, atol=0)
    assert read["plain"] == content["plain"] and read["parameter"].kind == "kept"
