"""What the callback logs of a training, against brute force over all validation images."""

from functools import partial

import pytest
import torch
from lightning import Callback
from torch.utils.data import DataLoader, TensorDataset

from tests.callbacks import conftest
from tests.callbacks.conftest import Noted, Pictures, hooks_of, same
from tests.examples.diagnostics import chain, plain
from zfscope.callbacks import Diagnostics, Projections
from zfscope.diagnostics import filter_frequencies
from zfscope.networks.chain import ConvNet
from zfscope.networks.hooked import HookedNetwork

fit = partial(conftest.fit, max_epochs=2)


class Module(conftest.Module):
    """Keeps what is logged: ``(epoch, name, value)``; other loaders than the first hold far larger images."""

    def __init__(self, network=None, loaders=1, lr=1e-4):
        super().__init__(network if network is not None else chain(), lr=lr, training=Pictures(14, side=33))
        self.loaders, self.logged = loaders, []

    def validation_step(self, batch, _, dataloader_idx=0):
        self(batch[0])

    def log(self, name, value, *args, **kwargs):
        self.logged.append((self.trainer.current_epoch, name, float(value)))
        super().log(name, value, *args, **kwargs)

    def val_dataloader(self):
        images, labels = self.training_set.images, torch.arange(14) % 2
        return [DataLoader(TensorDataset(1e6**number * images, labels), 4) for number in range(self.loaders)]


class Disturbing(Callback):
    """Runs other images through the network when the validation pass is over, as pictures of them would."""

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module(1e6 * pl_module.training_set.images)


def brute_force(network, images):
    """What is logged, from the whole maps of all images at once and from a plain loop."""
    expected, dead = {}, []
    layers = ["conv1", "conv2", "fc3"] if isinstance(network, ConvNet) else ["2", "4"]
    hooked = network if isinstance(network, ConvNet) else HookedNetwork(network, layers)
    with torch.no_grad():
        for layer in layers:
            maps = hooked.eval().features(images, layer).transpose(0, 1).flatten(1).clamp_min(0)
            spans = maps.amax(1) - maps.amin(1)
            living = maps.amax(1) > 0
            nearly = living & (spans < 0.01 * spans[living].median())
            dead += (~living).tolist()
            expected[f"{layer}/dead_maps"] = int((~living).sum())
            expected[f"{layer}/near_dead_maps"] = int(nearly.sum())
    expected["dead_share"] = sum(dead) / len(dead)
    name, conv = ("conv1", network.conv1.conv) if isinstance(network, ConvNet) else ("0", network[0])
    shares = filter_frequencies(conv.weight, conv.stride)
    for band in ("low", "middle", "high"):
        expected[f"{name}/{band}_frequency_energy"] = getattr(shares, band).median().item()
    expected[f"{name}/energy_beyond_stride"] = shares.beyond_stride.median().item()
    return expected


@pytest.mark.parametrize(("make", "layers"), [(chain, None), (plain, ["network.2", "network.4"])])
@pytest.mark.parametrize("loaders", [1, 2])
def test_each_epoch_logs_what_brute_force_over_all_validation_images_finds(tmp_path, make, layers, loaders):
    module, before = Module(make(), loaders), Noted()

    trainer = fit(tmp_path, module, Disturbing(), Diagnostics(layers), before, num_sanity_val_steps=2)

    for epoch, state in enumerate(before.states[1:]):  # the first was the sanity check
        module.load_state_dict(state["weights"])
        prefix = "" if make is chain else "network."
        expected = {
            f"diagnostics/{'' if key == 'dead_share' else prefix}{key}": value
            for key, value in brute_force(module.network, module.training_set.images).items()
        }
        logged = {name: value for when, name, value in module.logged if when == epoch}
        assert logged == pytest.approx(expected, rel=1e-5)
    assert set(expected) <= set(trainer.logged_metrics)
    if make is chain:
        assert logged["diagnostics/conv2/dead_maps"] == 2 and logged["diagnostics/conv1/near_dead_maps"] == 1


def test_a_foreign_modules_bare_filterings_are_not_called_dead(tmp_path):
    module = Module(plain())
    module.network[0].bias.data[0] = -1000.0  # brought back by the norm above it

    fit(tmp_path, module, Diagnostics())

    assert not any("dead" in name for _, name, _ in module.logged)
    assert any("network.0/low_frequency_energy" in name for _, name, _ in module.logged)


def test_training_goes_the_same_way_to_the_bit_and_no_hook_stays(tmp_path):
    watched, alone = Module(), Module()

    fit(tmp_path, watched, Diagnostics())
    fit(tmp_path, alone)

    assert same(watched.state_dict(), alone.state_dict()) and not hooks_of(watched)


def test_only_the_epochs_asked_for_are_logged_and_none_outside_of_training(tmp_path):
    module = Module()

    trainer = fit(tmp_path, module, Diagnostics(["conv2"], when=[2]), max_epochs=3)
    logged = list(module.logged)
    trainer.validate(module, verbose=False)

    assert {epoch for epoch, *_ in logged} == {1} and module.logged == logged
    assert {name.split("/")[1] for _, name, _ in logged if "dead" in name} == {"conv2", "dead_share"}


def test_hooks_go_after_a_validation_that_failed(tmp_path):
    class Failing(Module):
        def validation_step(self, batch, *_):
            super().validation_step(batch, *_)
            raise RuntimeError("no more")

    module = Failing()

    with pytest.raises(RuntimeError, match="no more"):
        fit(tmp_path, module, Diagnostics())

    assert not hooks_of(module)


@pytest.mark.parametrize("swapped", [False, True])
def test_beside_other_pictures_a_compiled_network_is_looked_into_and_runs_compiled_again(tmp_path, swapped):
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    module = Module()
    module.network.compile(backend=counter)
    callbacks = [Diagnostics(), Projections(maps=2, top=2)]

    fit(tmp_path, module, *(reversed(callbacks) if swapped else callbacks), max_epochs=1)
    compiled = counter.frame_count
    module.network(torch.randn(5, 3, 33, 33).double().float().requires_grad_())

    assert any(name == "diagnostics/conv2/dead_maps" and value == 2 for _, name, value in module.logged)
    assert compiled > 0 and counter.frame_count > compiled


def test_an_unknown_layer_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match="no layer 'conv9'; the layers are conv1, conv2, fc3, fc4"):
        fit(tmp_path, Module(), Diagnostics(["conv9"]))
