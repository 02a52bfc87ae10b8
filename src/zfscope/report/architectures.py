"""Whether a network is the paper's own, by what it is: the networks of Table 3 stand in ``networks.yaml``.

Source: Zeiler & Fergus (2014), Fig. 3, Sec. 3 and Table 3; constants of the contrast normalisation and what differs in
the replication of Krizhevsky et al. (2012): theirs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from zfscope.schema import flatten

NETWORKS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("networks.yaml").read_text("utf-8"))

PUBLIC = {"zoo/zfnet": "zfnet", "zoo/zfnetb": "zfnet_wide"}
IMAGENET = {"name": "imagenet", "resize": 256, "crop": 224, "classes": None}  # Sec. 3


def row_of(facts: Mapping[str, Any]) -> str | None:
    """The row of Table 3 that a network is: its architecture, start and constants, trained on all of ImageNet.

    ``facts`` are those of its training's identity, by dotted key. None for any other network, images or start.
    """
    if set(facts) == {"weights"}:  # public ones, as they are
        return PUBLIC.get(facts["weights"])
    whole = all(facts.get(f"data.{key}") == value for key, value in IMAGENET.items())
    limited = any(key.startswith(("trainer.limit_train", "trainer.overfit", "trainer.fast_dev")) for key in facts)
    if not whole or limited or facts.get("weights") is not None:
        return None
    network = {key: value for key, value in facts.items() if key.startswith("model.") and key != "model.name"}
    return next((row for row, layers in NETWORKS.items() if network == flatten({"model": layers})), None)
