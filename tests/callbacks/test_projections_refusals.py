"""What projections cannot show is refused before the first step, or told in a warning."""

import lightning
import pytest
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tests.callbacks.conftest import Body, Module, Pictures, Stream, fit, hooks_of, small_chain
from zfscope.callbacks import Projections


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maps": 0}, "Projections: maps=0 and top=9 must be 1 or more"),
        ({"top": 0}, "Projections: maps=6 and top=0 must be 1 or more"),
        ({"unpooling": "overwrit"}, "Projections: unpooling='overwrit' must be sum or overwrite"),
        ({"when": 0}, "0 must be a whole number n"),
        ({"rule": "gradent"}, "no rule 'gradent'; the rules are auto, deconvnet, guided, gradient"),
    ],
)
def test_numbers_and_words_that_cannot_be_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        Projections(**options)


def gelu():
    return Module(Body(activation=F.gelu))


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (Module, {"layers": ["conv9"]}, ValueError, "Module has no submodule 'conv9'; there are network"),
        (lambda: Module(small_chain()), {"layers": ["conv9"]}, ValueError, "no layer 'conv9'; .* conv1, conv2, fc3"),
        (lambda: Module(small_chain()), {"layers": []}, ValueError, "layers names no layer; the layers are conv1"),
        (gelu, {"layers": ["network.conv2"]}, ValueError, "the rule 'guided' is not defined for gelu; rule='grad"),
        (gelu, {"rule": "guided"}, ValueError, "the rule 'guided' is not defined for gelu; rule='gradient' takes any"),
        (gelu, {"rule": "deconvnet"}, ValueError, "the rule 'deconvnet' is not defined for gelu"),
        (Module, {"unpooling": "overwrite"}, ValueError, "unpooling='overwrite' needs a chain"),
        (Module, {"image_of": "image"}, ValueError, "image_of='image' is not in an item of the data; it is tuple of 2"),
        (Module, {"image_of": 2}, ValueError, "image_of=2 is not in an item of the data; it is tuple of 2"),
        (Module, {"image_of": lambda item: item["x"]}, ValueError, "image_of failed on an item of the data: TypeError"),
        (Module, {"image_of": lambda item: "dog.png"}, ValueError, "with the image as a tensor, but got str"),
    ],
    ids=["submodule", "layer", "no layer", "layer of gelu", "guided", "deconvnet", "overwrite", "key", "place", "fails",
         "text"],
)  # fmt: skip
def test_what_was_typed_and_cannot_be_is_refused_in_a_line_before_the_first_step(
    tmp_path, make, options, error, message
):
    module = make()

    with pytest.raises(error, match=message) as caught:
        fit(tmp_path, module, Projections(**options), num_sanity_val_steps=2)

    assert module.global_step == 0 and len(str(caught.value).splitlines()) == 1
    assert not hooks_of(module) and not (tmp_path / "figures").exists()


def test_what_lightning_shows_late_is_refused_before_the_pass(tmp_path):
    class Counting(Module):
        def validation_step(self, batch, batch_idx):
            passed.append(batch_idx)

    passed = []

    with pytest.raises(ValueError, match="for gelu"):
        module, callback = Counting(Body(activation=F.gelu)), Projections(rule="deconvnet")
        fit(tmp_path, module, callback, max_epochs=2, check_val_every_n_epoch=2)

    assert passed == []


@pytest.mark.parametrize("options", [{"rule": "guided"}, {"image_of": "image"}])
def test_what_cannot_be_is_refused_by_the_first_batch_of_a_stream(tmp_path, options):
    module = Module(Body(activation=F.gelu), Stream())

    with pytest.raises(ValueError, match="not defined for gelu|is not in an item of the data"):
        fit(tmp_path, module, Projections(**options), num_sanity_val_steps=1)

    assert module.global_step == 0 and not hooks_of(module)


def test_an_unknown_layer_is_refused_where_nothing_is_validated(tmp_path):
    module = Module(small_chain())

    with pytest.raises(ValueError, match="no layer 'conv9'"):
        fit(tmp_path, module, Projections(["conv9"]), limit_val_batches=0)

    assert module.global_step == 0


class Scaling(Module):
    """Changes images between loader and network, as augmentation on a GPU does."""

    def on_after_batch_transfer(self, batch, _):
        return [batch[0] * 3, *batch[1:]]


@pytest.mark.parametrize("make", [Scaling, lambda: Module(validation=Pictures(noise=3.0))], ids=["scaled", "random"])
def test_images_that_do_not_come_again_as_they_were_are_told_of(tmp_path, make):
    with pytest.warns(UserWarning, match="an image read again .* does not give the activations that it won with"):
        fit(tmp_path, make(), Projections())


def test_which_images_a_batch_holds_must_be_known_where_several_processes_train(tmp_path, monkeypatch, warned):
    module = Module(validation=DataLoader(Pictures(), batch_size=4, shuffle=True))
    monkeypatch.setattr(lightning.Trainer, "world_size", 2)

    fit(tmp_path, module, Projections(), use_distributed_sampler=False, max_epochs=2)

    messages = [str(warning.message) for warning in warned if "several processes" in str(warning.message)]
    assert len(messages) == 1 and module.global_step == 6 and not (tmp_path / "figures").exists()


def test_fewer_images_than_the_top_wants_are_told_of_once(tmp_path):
    with pytest.warns(UserWarning, match="Projections: top=99, but validation has .* images: all of them are taken"):
        fit(tmp_path, Module(), Projections(top=99))


def test_a_validation_that_runs_no_layer_is_told_of(tmp_path):
    class Elsewhere(Module):
        def validation_step(self, batch, _):
            pass

    with pytest.warns(UserWarning, match="validation ran none of network.conv1, network.conv2; there is nothing"):
        fit(tmp_path, Elsewhere(), Projections())

    assert not (tmp_path / "figures").exists()
