"""What a callback cannot show: left out with a warning of one line. What a person typed is refused instead."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakSet

from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from zfscope.deconvnet.chain import Unpooling
from zfscope.deconvnet.choice import Choice
from zfscope.deconvnet.rules import WAY_OUT
from zfscope.deconvnet.winners import NoFeatureMaps, check_projectable, projectable_layers
from zfscope.networks.hooked import as_network
from zfscope.networks.network import Network
from zfscope.schema import listed

# Networks of which it was told in this training that they have no feature maps: one callback says why, the others that.
_told: WeakSet[Network] = WeakSet()


@contextmanager
def left_out(who: str, typed: bool = False, what: str = "no pictures") -> Iterator[None]:
    """Turn an error inside into a warning, for pictures must not end a training.

    Foreign modules and data sets raise errors of any kind. The warning says ``who`` leaves ``what`` out, and why. Where
    options were ``typed``, a ``ValueError``, which is how they are refused, is raised.
    """
    try:
        yield
    except Exception as error:
        if typed and isinstance(error, ValueError):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        rank_zero_warn(f"{who}: {what}: {kind}{lines[0] if lines else 'without a message'}")


def network_for(
    who: str, module: LightningModule, layers: Sequence[str] | None, what: str = "no pictures"
) -> Network | None:
    """The network of a module; None, with a warning, where there is nothing to look into and no layer was named."""
    with left_out(who, layers is not None, what):
        network = as_network(module, layers)
        _told.discard(network)
        return network
    return None


def told_once(network: Network, error: NoFeatureMaps) -> str:
    """Why a network has no feature maps; where another callback has said it in this training, only that."""
    if network in _told:
        return "there are no feature maps, as told above"
    _told.add(network)
    return str(error)


def layers_drawn(
    who: str,
    key: str,
    network: Network,
    image: Tensor,
    layers: Sequence[str] | None,
    rule: Choice,
    unpooling: Unpooling = "sum",
) -> tuple[str, ...]:
    """The layers that can be projected; the others are left out with a warning, or refused if options were typed.

    ``image`` is a network input ``(C, H, W)``; ``key`` the callback's in ``conf/callbacks``. The ``rule`` ``auto`` is
    not typed.

    Raises:
        ValueError: If layers, a rule or an unpooling were named that cannot be.
    """
    try:
        if layers is not None or rule != "auto" or unpooling != "sum":
            return check_projectable(network, layers, image, unpooling, rule)
        drawn, refused = projectable_layers(network, layers, image)
    except NoFeatureMaps as error:
        rank_zero_warn(f"{who}: no pictures: {told_once(network, error)}")
        return ()
    if refused:
        causes = "; ".join(f"{listed(names)}: {cause}" for cause, names in _by_cause(refused).items())
        rank_zero_warn(
            f"{who}: {'not all layers are' if drawn else 'nothing is'} drawn: {with_way_out(causes, who, key)}"
        )
    return drawn


def with_way_out(cause: str, who: str, key: str) -> str:
    """What a rule is not defined for, and how to choose another: by an override, and in a Trainer of one's own."""
    way = f" (callbacks.{key}.rule=gradient, or {who}(rule='gradient'))"
    return cause.replace(WAY_OUT, WAY_OUT + way)


def _by_cause(refused: dict[str, str]) -> dict[str, list[str]]:
    causes: dict[str, list[str]] = {}
    for layer, cause in refused.items():
        causes.setdefault(cause, []).append(layer)
    return causes
