"""The atlas in a browser, as ``make test-atlas`` runs it: from disk, and from a folder of a server.

No page may print an error or ask for anything outside its folder.
"""

import functools
import http.server
import shutil
import threading
from pathlib import Path

import pytest

from tests.atlas.conftest import content_of

pytestmark = pytest.mark.atlas
CHROMIUM = "/usr/bin/chromium"
LAYERS = ("#two", "#one?sort=class", "#two/7", "#two/39")
PAGES = ("", *LAYERS, "#images", "#image/{page}", "#image/{other}", "#classes", "#class/dog")
SEEN = "one => one.getBoundingClientRect().top > innerHeight || one.style.backgroundImage"
LAST = "[...document.querySelectorAll('.map')].at(-1).querySelector('.tile').style.backgroundImage"


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory, written):
    """The address of the atlas below a folder of a server on the loopback device."""
    root = tmp_path_factory.mktemp("served")
    shutil.copytree(written, root / "some/where")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root))
    server.handle_error = lambda *_: None  # a page that is left closes its connections
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/some/where/index.html"
    server.shutdown()


class Visit:
    """A tab whose errors and requests are kept."""

    def __init__(self, browser, address, **context):
        self.address, self.folder = address, address.rpartition("/")[0]
        self.context = browser.new_context(**({"viewport": {"width": 1200, "height": 900}} | context))
        self.page = self.context.new_page()
        self.errors, self.requests = [], []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfailed", lambda request: self.errors.append(f"failed: {request.url}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("response", lambda answer: self.errors.append(answer.url) if answer.status >= 400 else None)

    def go(self, place=""):
        """Open an address of the atlas, and wait until it is shown."""
        self.page.goto(self.address + place)
        self.wait(place)
        return self.page

    def wait(self, place):
        self.page.wait_for_function("place => document.documentElement.dataset.shown === place", arg=place.lstrip("#"))
        self.page.wait_for_function(f"() => [...document.querySelectorAll('.tile')].every({SEEN})")

    def close(self):
        """Nothing went wrong, and nothing outside the folder was asked for."""
        outside = [url for url in self.requests if not url.startswith((self.folder, "data:", "blob:"))]
        self.context.close()
        assert self.errors == [] and outside == [] and self.requests


@pytest.fixture(params=["disk", "server"])
def visit(request, browser, written):
    address = request.getfixturevalue("served") if request.param == "server" else (written / "index.html").as_uri()
    visit = Visit(browser, address)
    yield visit
    visit.close()


def places_of(written):
    index = content_of(written, "index")
    other = next(one["index"] for one in content_of(written, "images") if one["index"] not in index["pages"])
    return [place.format(page=index["pages"][0], other=other) for place in PAGES]


def heading(page):
    return page.locator("h1").inner_text()


def test_every_page_is_shown_by_its_address(visit, written):
    headings = [heading(visit.go(place)) for place in places_of(written)]

    assert headings[:4] == ["Atlas of Sequential", "two", "one", "two / 7"]
    assert headings[4].startswith("two / 39") and "dead" in headings[4]
    assert headings[8].startswith("Classes") and headings[9] == "dog"
    assert heading(visit.go("#nothing/1")) == heading(visit.go("#two/40")) == "No such page"


def test_a_walk_by_links_and_back(visit, written):
    page = visit.go()
    page.click("nav.layers a:has-text('two')")
    visit.wait("#two")
    assert page.locator(".map").count() == 40
    page.click(".sort a:has-text('strength')")
    visit.wait("#two?sort=strength")
    strengths = page.locator(".map .text span").all_inner_texts()
    numbers = [float(text) for text in strengths if text != "dead"]
    assert numbers == sorted(numbers, reverse=True) and strengths[-1] == "dead"
    first = page.locator(".map b").first.inner_text()
    page.locator(".map").first.click()
    visit.wait(f"#two/{first}")
    assert page.locator(".nine").count() == 2 and page.locator(".nine a").count() == 8
    page.locator(".winners a").first.click()
    page.wait_for_function("() => location.hash.startsWith('#image/')")

    for place in (f"#two/{first}", "#two?sort=strength", "#two", ""):
        page.go_back()
        visit.wait(place)


def test_keys_go_to_neighbours_search_help_and_up(visit):
    page = visit.go("#two/7")
    page.keyboard.press("ArrowRight")
    visit.wait("#two/8")
    page.keyboard.press("ArrowLeft")
    visit.wait("#two/7")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    page.keyboard.press("/")
    page.keyboard.type("two/3")
    assert page.locator("#found [aria-selected=true]").inner_text().startswith("two/3")
    page.keyboard.press("Enter")
    visit.wait("#two/3")
    page.keyboard.press("Escape")
    visit.wait("#two")
    page.keyboard.press("Escape")
    visit.wait("")


@pytest.mark.parametrize(
    ("typed", "place"), [("one", "#one"), ("ONE 4", "#one/4"), ("dog", "#class/dog"), ("image {page}", "#image/{page}")]
)
def test_search_finds_layers_maps_classes_and_images(visit, written, typed, place):
    number = content_of(written, "index")["pages"][0]
    page = visit.go()
    page.click("#query")
    page.wait_for_timeout(100)
    page.keyboard.type(typed.format(page=number))
    page.keyboard.press("Enter")
    visit.wait(place.format(page=number))


def test_a_square_over_an_image_tells_probability_and_class(visit, written):
    index = content_of(written, "index")
    number = index["pages"][0]
    found = content_of(written, f"image-{number}")["occlusion"]
    page = visit.go(f"#image/{number}")

    cell = page.locator(".heat").first.locator("i").nth(len(found["probability"][0]) + 2)
    cell.hover()
    text = page.locator(".read").inner_text()
    share = 100 * found["probability"][1][2]
    assert f"{index['answers'][found['target']]} " in text and f"{share:.0f} %" in text
    assert f"square at x {2 * found['stride']}, y {found['stride']}" in text
    assert page.locator(".scene .square").is_visible()
    page.locator(".heat").first.focus()
    page.keyboard.press("ArrowRight")
    assert f"square at x {3 * found['stride']}, y {found['stride']}" in page.locator(".read").inner_text()


def test_tiles_far_below_are_not_loaded_before_they_come_near(visit):
    visit.page.set_viewport_size({"width": 400, "height": 300})
    page = visit.go("#two")
    loaded = "tiles => tiles.filter(one => one.style.backgroundImage).length"
    before = page.locator(".map .tile").evaluate_all(loaded)
    page.locator(".map").last.scroll_into_view_if_needed()
    page.wait_for_function(f"() => {LAST}")

    assert 0 < before < page.locator(".map .tile").count() == 80
    assert page.locator(".map .tile").evaluate_all(loaded) > before


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_every_page_is_accessible_and_fits_the_screen(browser, written, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    address = (written / "index.html").as_uri()
    for place in places_of(written):
        visit = Visit(browser, address, color_scheme=scheme, viewport={"width": width, "height": 900})
        page = visit.go(place)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (place, width)
        levels = page.locator("main :is(h1, h2, h3)").evaluate_all("all => all.map(one => Number(one.tagName[1]))")
        assert levels[0] == 1 and all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
        assert visit.errors == []
        found = axe.run(page, options={"preload": False}).response["violations"]
        assert [(one["id"], one["nodes"][0]["target"]) for one in found] == [], place
        visit.close()


def test_dark_or_light_is_chosen_by_a_button_and_remembered(visit):
    page = visit.go()
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.click("#theme")
    dark = page.evaluate(ground)
    page.reload()

    assert dark != light and page.evaluate(ground) == dark


def test_hostile_names_run_nothing_and_fit_the_screen(browser, hostile):
    visit = Visit(browser, Path(hostile / "index.html").as_uri(), viewport={"width": 390, "height": 800})
    visit.page.on("dialog", lambda dialog: visit.errors.append("a dialog"))
    index = content_of(hostile, "index")
    for place in ("", "#classes", "#images", *(f"#{layer['address']}" for layer in index["layers"]), "#image/1"):
        assert visit.go(place).evaluate("document.documentElement.scrollWidth <= innerWidth"), place
    for number in range(len(index["classes"])):
        visit.go("#classes")
        visit.page.locator(".class-row h2 a").nth(number).click()
        visit.page.wait_for_function("() => document.documentElement.dataset.shown.startsWith('class/')")
        assert visit.page.locator("h1").text_content() == index["classes"][number]
        assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), number
    visit.close()


def test_back_finds_a_page_where_it_was_left(visit):
    visit.page.set_viewport_size({"width": 400, "height": 300})
    page = visit.go("#two")
    page.mouse.wheel(0, 900)
    page.wait_for_function("() => scrollY > 800")
    page.wait_for_timeout(200)
    left = page.evaluate("scrollY")
    page.evaluate("location.hash = '#two/30'")
    visit.wait("#two/30")
    assert page.evaluate("scrollY") == 0
    page.go_back()
    visit.wait("#two")

    assert abs(page.evaluate("scrollY") - left) < 60
