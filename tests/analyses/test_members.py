"""The members of an ensemble: found, opened, checked, named."""

import shutil

import pytest
import torch

from tests.analyses.conftest import CLASSES, model, save
from zfscope.analyses.members import Member, architectures, open_members
from zfscope.networks.build import build_network
from zfscope.networks.checkpoints import load_network


def names_of(members):
    return [member.name for member in members]


# --- which networks ---


def test_a_pattern_gives_the_runs_of_a_sweep_and_passes_over_other_files(six):
    save(six / "10", 10)

    members = open_members(f"{six}/*")

    assert names_of(members) == ["0", "1", "2", "3", "4", "5", "10"]
    assert members[6].path == str(six / "10")
    assert members[5].config["model"]["name"] == "tiny_wide"
    assert members[5].network.preprocessing.resize == 24
    assert not any(member.network.training for member in members)
    own = load_network(six / "5").state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in members[5].network.state_dict().items())


def test_a_list_of_runs_files_and_patterns_is_taken_in_its_order(six):
    given = (f"{six}/4", f"{six}/[01]", f"{six}/3/checkpoints/best.ckpt", f"{six}/5/checkpoints/*.ckpt")

    assert names_of(open_members(given)) == ["4", "0", "1", "3/checkpoints/best.ckpt", "5/checkpoints/best.ckpt"]


def test_what_follows_a_pattern_is_asked_of_every_folder(six):
    for number in range(4):
        save(six / str(number), 20 + number, best="last")

    with pytest.raises(ValueError, match=r"2 of 6 members cannot be read: \S+/4/last, \S+/5/last \(no checkpoint at"):
        open_members(f"{six}/*/last")
    members = open_members(f"{six}/*/last", partial=True)

    assert names_of(members) == ["0/last", "1/last", "2/last", "3/last"]
    assert float(members[1].network.preprocessing.mean[0]) == 131


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path):
    save(tmp_path / "lr=[0.1]" / "0")

    assert names_of(open_members(str(tmp_path / "lr=[0.1]" / "0"))) == ["0"]


def test_a_pattern_that_matches_nothing_is_refused(six):
    for pattern in (f"{six}/seven/*", f"{six}/*.yaml"):
        with pytest.raises(FileNotFoundError, match=r"matches no run folder and no .ckpt file; give a pattern"):
            open_members(pattern)


def test_a_run_without_checkpoint_and_a_damaged_one_are_refused_by_name_or_left_out_on_request(six):
    shutil.rmtree(six / "2" / "checkpoints")
    with pytest.raises(ValueError, match=rf"1 of 6 members cannot be read: {six}/2 \(no checkpoint .*partial=true"):
        open_members(f"{six}/*")

    damaged = six / "4" / "checkpoints" / "best.ckpt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=f"2 of 6 members cannot be read: {six}/2, {six}/4 "):
        open_members(f"{six}/*")

    assert names_of(open_members(f"{six}/*", partial=True)) == ["0", "1", "3", "5"]


def test_the_cause_of_a_damaged_member_is_told(six):
    (six / "3" / "checkpoints" / "best.ckpt").write_bytes(b"")

    with pytest.raises(ValueError, match=rf"{six}/3 \(.*best.ckpt is no checkpoint, or is cut off"):
        open_members(f"{six}/*")


def test_with_no_member_left_partial_refuses_too(tmp_path):
    (tmp_path / "0").mkdir()

    with pytest.raises(ValueError, match=r"1 of 1 members cannot be read: \S+/0 \(no checkpoint at [^)]*\)$"):
        open_members(f"{tmp_path}/*", partial=True)


def test_a_member_that_comes_twice_is_refused_with_both_names(six):
    shutil.copytree(six / "1", six / "7")

    with pytest.raises(ValueError, match=f"{six}/1 and {six}/7 are the same network; a member counts once"):
        open_members(f"{six}/*", partial=True)


def test_members_with_other_classes_or_another_order_are_refused_by_name(six):
    save(six / "6", 6, classes=("a", "c", "b", *CLASSES[3:]))
    with pytest.raises(ValueError, match=f"{six}/6 has the classes of {six}/0 in another order: number 1 is 'c', not"):
        open_members(f"{six}/*", partial=True)
    save(six / "6", 6, classes=(*CLASSES[:7], "z"))
    with pytest.raises(ValueError, match=f"{six}/6 has other classes than {six}/0: it lacks h, it adds z; members of"):
        open_members(f"{six}/*")
    save(six / "6", 6, classes=CLASSES[:7])
    with pytest.raises(ValueError, match=f"{six}/6 tells 7 classes apart, {six}/0 tells 8; members of an ensemble"):
        open_members(f"{six}/*")


def test_a_member_that_does_not_know_its_preprocessing_is_refused(six):
    save(six / "6", 6, preprocessing=False)

    with pytest.raises(ValueError, match=f"{six}/6 does not tell how its images are prepared"):
        open_members(f"{six}/*")


def test_members_of_one_name_whose_models_differ_are_told_apart_by_what_differs():
    def member(image_size=16, **changes):
        values = model()
        values["conv1"] |= {key: value for key, value in changes.items() if key == "maps"}
        values |= {key: value for key, value in changes.items() if key != "maps"}
        return Member("", "", build_network(values, 8, image_size), {"model": values}, "")

    assert architectures([member(), member(name="other", maps=5), member()]) == ["tiny", "other", "tiny"]
    assert architectures([member(), member(maps=5), member(name="other", maps=6)]) == [
        "tiny conv1.maps=4",
        "tiny conv1.maps=5",
        "other",
    ]
    assert architectures([member(), member(image_size=20)]) == ["tiny image_size=16", "tiny image_size=20"]
    assert architectures([member(), member(fc6=None)])[1] == "tiny fc6=null"
