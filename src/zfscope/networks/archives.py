"""A file of ``torch.save``, looked through before torch reads it.

``torch.load(weights_only=True)`` runs no code of a file, but it believes it: a kilobyte may ask for terabytes, by
strides of 0, by constructors of tensors, or by a storage that is said to be larger than it is, which is then read
beyond its end. Here the file's pickle is followed without making a tensor, and each size is held against the file.
"""

import io
import math
import pickle
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from zfscope.schema import printable

MOST_VALUES = 10_000_000  # of containers in one file, those that stand in several places counted in each
DEEPEST = 200
ALONE = "save only its state_dict()"


def check_archive(path: str | Path, holders: Collection[str] = ()) -> None:
    """Refuse a file that is damaged, that torch could not read in about the memory that it takes on disk, or that
    holds more than tensors and plain containers.

    ``holders`` are full names of further classes that only hold values, such as ``argparse.Namespace``.

    Raises:
        ValueError: Naming the file and what is wrong in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = _pickle_of(archive, path)
            if damaged := archive.testzip():
                raise _Wrong(f"is damaged at {damaged} (checksum); use another checkpoint of the run")
            preview = _Preview(io.BytesIO(archive.read(name)), _sizes(archive), holders)
            _count(preview.load())
    except _Wrong as error:
        raise ValueError(f"{path} {error}") from None
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path} is no checkpoint, or is cut off ({error}); use another one of the run") from None
    except (MemoryError, RecursionError):
        raise ValueError(f"{path} is nested too deeply and was not loaded; use another file") from None
    except Exception as error:  # whatever a broken pickle does
        raise ValueError(f"{path} was not written by torch.save, or is damaged; use another file") from error


class _Wrong(Exception):
    """What is wrong with a file, as a sentence about it."""


class _Storage:
    """So many bytes in the file, of numbers of one size."""

    def __init__(self, nbytes: int, itemsize: int) -> None:
        self.nbytes, self.itemsize = nbytes, itemsize


class _Holder:
    """What would be an object with values."""


class _Tensor:
    """What would be a tensor."""

    def __setstate__(self, state: Any) -> None:
        raise _Wrong(f"gives a tensor a state of its own and was not loaded; {ALONE}")


def _parameter(data: Any, *_: Any) -> _Tensor:
    if not isinstance(data, _Tensor):
        raise _Wrong("was not written by torch.save, or is damaged; use another file")
    return data


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _Wrong("was not written by torch.save, or is damaged; use another file")
    return text.encode("latin1")


def _plain(*_: Any) -> None:
    return None


_KNOWN = {
    "collections.OrderedDict": OrderedDict,
    "collections.Counter": Counter,
    "builtins.set": set,
    "builtins.complex": complex,
    "_codecs.encode": _bytes,
    "torch.Size": tuple,
    "torch.device": _plain,
    "torch.serialization._get_layout": _plain,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
_TENSORS = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
_ITEM_SIZES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1}
_ITEM_SIZES |= {"Bool": 1, "ComplexDouble": 16, "ComplexFloat": 8, "Untyped": 1}


class _Preview(pickle._Unpickler):  # Python's own: the one in C makes as many places as a file says
    """Follows a pickle; of all that it may call there is only what is known here."""

    def __init__(self, file: io.BytesIO, sizes: dict[str, int], holders: Collection[str] = ()) -> None:
        super().__init__(file, encoding="utf-8")
        self.sizes, self.holders = sizes, holders
        self.asked = 0  # bytes of all tensors, each as if it had its own

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the file stands for."""
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"
        kind = name.removesuffix("Storage")
        if module in ("torch", "torch.cuda", "torch.storage") and kind in _ITEM_SIZES and kind != name:
            return kind
        if full in _TENSORS:
            return self.make_tensor
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if full in self.holders:
            return _Holder
        if full not in _KNOWN:
            raise _Wrong(
                f"holds more than tensors and plain containers and was not loaded: there is a {printable(full)} in it; "
                f"{ALONE}"
            )
        return _KNOWN[full]

    def persistent_load(self, identity: Any) -> _Storage:
        """The numbers of a tensor: no more than are stored."""
        _, kind, key, _, count = identity
        storage = _Storage(count * _ITEM_SIZES[kind], _ITEM_SIZES[kind])
        if not 0 <= storage.nbytes <= self.sizes[key]:
            raise _Wrong(f"has {self.sizes[key]} bytes where it says that {storage.nbytes} are; use another file")
        return storage

    def make_tensor(self, storage: _Storage, offset: int, size: Any, stride: Any, *more: Any) -> _Tensor:
        """What would be a tensor, whose places lie within its storage and are not more than that has."""
        numbers = [offset, *size, *stride]
        if len(size) != len(stride) or any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError
        itemsize = next((one.itemsize for one in more if isinstance(one, torch.dtype)), storage.itemsize)
        count, held, shape = math.prod(size), storage.nbytes // itemsize, "x".join(map(str, size))
        if count and offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) >= held:
            raise _Wrong(f"holds a tensor of {shape} that reaches beyond its {held} numbers; use another file")
        self.asked += count * itemsize
        if count > held or self.asked > 4 * sum(self.sizes.values()):  # tied weights stand twice
            raise _Wrong(
                f"holds tensors that repeat few numbers, such as one of {shape}, and was not loaded; "
                "save copies: tensor.contiguous()"
            )
        return _Tensor()


def _pickle_of(archive: zipfile.ZipFile, path: str | Path) -> str:
    """The entry of the containers, where torch and zipfile cannot see two different ones."""
    entries, names = archive.infolist(), archive.namelist()
    for entry in entries:  # torch stores them as they are; a compressed one could expand without bounds
        if entry.compress_type != zipfile.ZIP_STORED:
            raise _Wrong(
                f"is no checkpoint: {printable(entry.filename)} in it is compressed, as in a TorchScript archive; "
                "torch.save(…state_dict()) writes what can be read"
            )
    folders = {name.partition("/")[0] for name in names}
    twice = len({name.lower() for name in names}) < len(names)
    size = Path(path).stat().st_size
    if twice or len(folders) != 1 or archive.comment or sum(entry.file_size for entry in entries) > size:
        raise _Wrong("was not written by torch.save, or is damaged; use another file")
    name = f"{folders.pop()}/data.pkl"
    if name not in names:
        raise _Wrong("was not written by torch.save, or is damaged; use another file")
    return name


def _sizes(archive: zipfile.ZipFile) -> dict[str, int]:
    """The bytes of each storage by its key."""
    return {
        entry.filename.split("/", 2)[2]: entry.file_size
        for entry in archive.infolist()
        if entry.filename.split("/")[1:2] == ["data"] and entry.filename.count("/") >= 2
    }


def _count(content: Any) -> None:
    """Refuse containers that would never end to be walked through."""
    sizes: dict[int, int | None] = {}  # by identity; None while one is counted

    def size(value: Any, depth: int) -> int:
        if not isinstance(value, dict | list | tuple | set):
            return 1
        if id(value) not in sizes:
            if depth > DEEPEST:
                raise RecursionError
            sizes[id(value)] = None
            inside = [*value, *value.values()] if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(size(item, depth + 1) for item in inside)
        counted = sizes[id(value)]
        if counted is None or counted > MOST_VALUES:
            raise _Wrong("holds containers in containers without end and was not loaded; use another file")
        return counted

    size(content, 0)
