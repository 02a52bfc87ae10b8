"""What ``device=`` means: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:1``; and the memory of this machine."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from zfscope.schema import listed

if TYPE_CHECKING:
    import torch


def _known(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"device={name!r}: the devices are auto, cpu, mps, cuda and cuda:NUMBER")
    return name


DeviceName = Annotated[str, AfterValidator(_known)]


def find_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the first accelerator of this machine, or else the CPU.

    Raises:
        ValueError: If this machine has no such device.
    """
    import torch

    kind, numbered, _ = name.partition(":")
    if kind == "auto" and not numbered:
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if has_device(kind)))
    if not has_device(kind):
        raise ValueError(f"device={name}: this machine has none; use device=auto or device=cpu")
    present = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if kind == "cuda" else [kind]
    if numbered and present and name not in present:
        raise ValueError(f"device={name}: this machine has {listed(present)}; use one of them or device=auto")
    return torch.device(name)


def has_device(kind: str) -> bool:
    """Whether torch finds a device of a kind, ``cuda``, ``mps`` or ``cpu``, on this machine."""
    import torch

    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}.get(kind, False)


def trainer_device(name: str) -> dict[str, Any]:
    """``accelerator`` and ``devices``, one device, for ``lightning.Trainer``; values in conf/trainer override them."""
    if name != "auto":
        find_device(name)
    kind, _, number = name.partition(":")
    return {"accelerator": kind, "devices": [int(number)] if number else 1}


def has_gpu() -> bool:
    """Whether this machine seems to have a GPU, found without torch: by the files of its driver."""
    return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/kfd", "/proc/driver/nvidia/version"))


def peak_memory() -> int:
    """Bytes of memory that this process has held at most; 0 where that is not known."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def available_memory() -> int | None:
    """Bytes of this machine's memory that a new process may take; None where they are not known.

    A container's own limit counts where it is lower.
    """
    free = None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit, used = (
            int(Path("/sys/fs/cgroup", f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current")
        )
    except (OSError, ValueError):
        return free
    return limit - used if free is None else min(free, limit - used)


def keep_memory() -> None:
    """Let glibc keep freed blocks instead of handing each back to the kernel.

    On a CPU every step allocates the same large maps anew; clearing fresh pages for them took a quarter to a
    third of a step of zfnet_mini. Other C libraries have no mallopt and go on as they are.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 2**28)
