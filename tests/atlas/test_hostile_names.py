"""Names of classes, files and layers come from strangers: they are text on the page, and never part of a path."""

import json
import re
from html.parser import HTMLParser

import pytest

from tests.atlas.conftest import HOSTILE, content_of
from tests.atlas.test_write import check_whole
from zfscope.atlas.page import POLICY, address_of, as_script


def test_nothing_is_written_outside_the_folder_and_all_file_names_are_plain(hostile):
    assert [path.name for path in hostile.parents[1].rglob("*") if hostile not in (path, *path.parents)] == ["inside"]
    for path in hostile.rglob("*"):
        assert re.fullmatch(r"[A-Za-z0-9_.-]{1,70}", path.name), path
    check_whole(hostile)


def test_the_page_holds_the_policy_and_no_markup_of_a_name(hostile):
    page = (hostile / "index.html").read_text(encoding="utf-8")

    assert f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'.replace("'", "&#39;") in page
    assert "default-src 'none'" in POLICY and "unsafe" not in POLICY and "http" not in POLICY
    assert page.count("<script") == page.count("<script src=") == 5
    tags, parser = [], HTMLParser()
    parser.handle_starttag = lambda tag, about: tags.append((tag, dict(about)))
    parser.feed(page)
    assert not {"svg", "img", "style"} & {tag for tag, _ in tags} and "alert(1)" in page
    assert not [name for _, about in tags for name in about if name == "style" or name.startswith("on")]
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", page)


def test_data_scripts_are_one_call_in_ascii_without_markup(hostile):
    for path in (hostile / "data").glob("*.js"):
        text = path.read_bytes()
        assert text.isascii() and b"<" not in text and b">" not in text and text.count(b"\n") == 1


def test_names_come_back_as_they_were_but_for_what_cannot_be_seen(hostile):
    names = content_of(hostile, "index")["classes"]

    assert len(names) == len(HOSTILE)
    for name, own in zip(names, HOSTILE, strict=True):
        assert name == own if own.isprintable() else name.isprintable() and name.encode()
    assert [one["name"] for one in content_of(hostile, "images")] == [
        names[one["index"]] for one in content_of(hostile, "images")
    ]


@pytest.mark.parametrize("name", HOSTILE)
def test_json_in_a_script_is_what_was_put_in(name):
    text = as_script({name: [name, 1.5, None]})

    assert json.loads(text) == {name: [name, 1.5, None]}
    assert text.isascii() and not re.search("[<>&\u2028\u2029]", text)


def test_addresses_are_plain_and_no_two_are_alike_in_any_case():
    taken: list[str] = []
    for name in (*HOSTILE, "conv5", "Conv5", "conv5", "conv5-2", "image", "Classes", "layer4.1.conv"):
        taken.append(address_of(name, taken))

    assert len({address.lower() for address in taken}) == len(taken)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", address) and len(address) <= 64 for address in taken)
    assert not {"image", "images", "class", "classes", "index"} & {address.lower() for address in taken}
    assert {"conv5", "layer4.1.conv"} <= set(taken)
