"""What is typed for a picture that cannot be drawn is refused before a run begins."""

import pytest


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("callbacks.projections.layers=[conv9]", "no layer 'conv9'; the layers are conv1"),
        ("callbacks.feature_evolution.layers=[conv9]", "no layer 'conv9'; the layers are conv1"),
        ("callbacks.occlusion_maps.layer=conv9", "no layer 'conv9'; the layers are conv1"),
        ("callbacks.occlusion_maps.size=900", "size=900 is larger than the image of 28x28 pixels"),
        ("callbacks.filter_images.layer=conv9", "no conv layer 'conv9'; the conv layers are conv1"),
        ("callbacks.diagnostics.layers=[conv9]", "no layer 'conv9'; the layers are conv1"),
        ("callbacks.projections.rule=gradent", "no rule 'gradent'; the rules are auto, deconvnet, guided, gradient"),
    ],
)
def test_a_refused_picture_leaves_no_run_behind(command, tmp_path, tiny, typed, message):
    code, _, err = command("train", *tiny, "callbacks=default", typed, "logger=wandb", "hydra.run.dir=outputs/run")

    assert code == 2 and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "outputs/run").exists()
