from typing import Literal

import pytest

from zfscope.schema import Count, Strict, check, listed, nearest, plain, printable


class Square(Strict):
    kind: Literal["square"] = "square"
    side: Count


class Page(Strict):
    title: str
    shapes: tuple[Square, ...] = ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"^title is missing; give it as title=…$"),
        ({"title": "a", "shapes": [{"side": 1}, {"side": 0}]}, r"^shapes\.1\.side=0: input should be greater"),
        (
            {"title": "a", "shapes": [{"sidee": 1}]},
            r"^shapes\.0\.sidee=1: .* did you mean side\? \(and 1 more mistake\)$",
        ),
        ({"title": "a", "xyzzy": 1}, r"^xyzzy=1: there is no such key; there are shapes, title$"),
        ({"title": 5}, r"^title=5: input should be a valid string$"),
    ],
)
def test_the_first_wrong_key_is_told_where_it_stands(values, message):
    with pytest.raises(ValueError, match=message):
        check(Page, values)


def test_a_group_of_keys_is_named_in_the_message():
    with pytest.raises(ValueError, match=r"^page\.title is missing; give it as page\.title=…$"):
        check(Page, {}, "page")


def test_a_checked_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        check(Page, {"title": "a"}).title = "b"


def test_nearest_lists_the_names_when_nothing_is_near():
    assert nearest("moment", ["lr", "momentum"]) == "did you mean momentum?"
    assert nearest("xyzzy", ["momentum", "lr"]) == "there are lr, momentum"
    assert nearest("xyzzy", []) == "nothing can be set there"


def test_plain_turns_nested_containers_into_dicts_and_lists():
    assert plain({"a": ({"b": (1, 2)},), 3: "text"}) == {"a": [{"b": [1, 2]}], 3: "text"}


def test_names_are_listed_in_one_printable_line():
    assert listed(f"{number}.jpg" for number in range(7)) == "0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 2 more"
    assert listed(["a", "b"], most=2) == "a, b"
    assert printable("a\nb\udce9") == "a\\nb\\udce9"
