"""The page in a browser: what it shows, that its controls work, and that nothing leaves it."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from fmprobe.registry import sections
from fmprobe.report.page import write_report
from fmprobe.report.surrogate import QUALITY

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
PACKAGES = all(find_spec(name) for name in ("selenium", "axe_selenium_python"))
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER and PACKAGES),
    reason="needs chromium, chromedriver and the packages of the extra test",
)
WIDTHS = {"desktop": (1200, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def page(written, tmp_path_factory) -> Path:
    """A page with every section and a full gallery, its pictures noise, which compresses worst."""
    return write_report(written.gathered(tmp_path_factory.mktemp("run"), search="wide"))


@pytest.fixture(scope="module")
def driver():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "disable-background-networking",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as driver:
        driver.set_script_timeout(120)
        yield driver


@pytest.fixture
def shown(driver, page):
    """The page, loaded anew on a desktop, in light."""
    from selenium.webdriver.support.wait import WebDriverWait

    driver.get_log("performance")
    _look(driver, "desktop", "light")
    driver.get(page.as_uri())
    WebDriverWait(driver, 60).until(lambda _: driver.execute_script("return document.readyState") == "complete")
    return driver


def _look(driver, width: str, scheme: str) -> None:
    columns, rows = WIDTHS[width]
    metrics = {"width": columns, "height": rows, "deviceScaleFactor": 1, "mobile": width == "phone"}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def test_the_page_is_small_and_complete(page, shown):
    assert page.stat().st_size < 5_000_000
    titles = [heading.text for heading in shown.find_elements("css selector", "h2")]
    shows = [section.title for section in (*sections(), QUALITY) if section.across is None]
    assert titles == ["At a glance", *shows, "Protocol and provenance"]
    for link in shown.find_elements("css selector", "nav a"):
        assert shown.find_element("id", link.get_dom_attribute("href").removeprefix("#")).is_displayed()


def test_nothing_is_asked_for_and_nothing_complained_of(shown):
    events = [json.loads(entry["message"])["message"] for entry in shown.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url.partition(":")[0] for url in asked if not url.startswith("data:")] == ["file"]
    assert shown.get_log("browser") == []
    # The policy holds: what a page could be made to ask for is refused.
    refused = "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('sent'), () => done('refused'))"
    assert shown.execute_async_script(refused) == "refused"
    assert any("Content Security Policy" in entry["message"] for entry in shown.get_log("browser"))


def test_every_slider_moves_its_frames(shown):
    from selenium.webdriver.common.keys import Keys

    sliders = shown.find_elements("css selector", "input[type=range]")
    assert len(sliders) == 3
    for slider in sliders:
        film = slider.find_element("xpath", "ancestor::div[contains(@class, 'film')]")
        frame, output = film.find_element("class name", "frame"), film.find_element("tag name", "output")
        last, place = output.text, frame.value_of_css_property("background-position-x")
        assert place == "100%"
        slider.send_keys(Keys.HOME)
        assert frame.value_of_css_property("background-position-x") == "0%"
        assert output.text == str(json.loads(slider.get_dom_attribute("data-labels") or "")[0]) != last
        slider.send_keys(Keys.END)
        assert output.text == last
        assert slider.accessible_name in ("step", "atoms")


def test_an_attractor_is_inspected_by_pointer_tap_and_keys(shown):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    tiles = shown.find_elements("class name", "tile")
    title = shown.find_element("css selector", ".inspector .title")
    picture = shown.find_element("css selector", ".inspector img")
    assert len(tiles) == 64
    ActionChains(shown).move_to_element(tiles[4]).perform()
    assert title.text == "attractor 5"
    assert picture.get_dom_attribute("src") == tiles[4].find_element("tag name", "img").get_dom_attribute("src")
    tiles[7].click()
    assert title.text == "attractor 8"
    assert shown.switch_to.active_element == tiles[7]
    tiles[7].send_keys(Keys.ARROW_RIGHT)
    assert title.text == "attractor 9"
    tiles[8].send_keys(Keys.END)
    assert title.text == "attractor 64"
    assert [tile.get_dom_attribute("tabindex") for tile in tiles].count("0") == 1
    facts = shown.find_element("css selector", ".inspector dl").text
    for name in ("basin", "steps", "last step", "spectral radius", "error"):
        assert name in facts


@pytest.mark.parametrize(("width", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_no_one_is_shut_out(driver, written, tmp_path, width, scheme):
    """axe finds nothing, and nothing is wider than the window, wide tables in their own scrolling boxes."""
    import axe_selenium_python

    _look(driver, width, scheme)
    driver.get(write_report(written.gathered(tmp_path / "run", search="prototypes")).as_uri())
    ink, page = driver.execute_script(
        "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    )
    assert (sum(_channels(ink)) > sum(_channels(page))) == (scheme == "dark")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= WIDTHS[width][0]
    axe = axe_selenium_python.Axe(driver)
    axe.inject()
    inside = {"exclude": [[".plot svg > *"]]}  # of pictures, which are shown to no one but by their titles
    violations = axe.run(inside)["violations"]
    assert violations == [], axe.report(violations)
    driver.execute_script("document.querySelector('.inspector img').removeAttribute('alt')")
    assert [
        found["id"] for found in axe.run(options={"runOnly": {"type": "rule", "values": ["image-alt"]}})["violations"]
    ] == ["image-alt"]


def test_labels_of_plots_can_be_read_on_a_phone(driver, page):
    _look(driver, "phone", "light")
    driver.get(page.as_uri())
    sizes = driver.execute_script(
        "return [...document.querySelectorAll('.plot svg text')].filter(t => t.textContent.trim())"
        ".map(t => { const at = t.getScreenCTM(); const scale = Math.hypot(at.a, at.b);"
        " return [t.textContent, parseFloat(getComputedStyle(t).fontSize) * scale] })"
    )
    assert len(sizes) > 50
    assert [(text, size) for text, size in sizes if size < 11] == []


LINES = """
return [...document.querySelectorAll('th, td')].map(cell => {
  const words = cell.innerText.trim().split(/\\s+/).filter(word => word), range = document.createRange();
  range.selectNodeContents(cell);
  const lines = new Set([...range.getClientRects()].filter(r => r.width).map(r => Math.round(r.bottom)));
  return [cell.innerText, words.length, lines.size];
});
"""


def test_no_cell_of_three_words_has_a_line_for_each_on_a_phone(driver, page):
    _look(driver, "phone", "light")
    driver.get(page.as_uri())
    driver.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true })")
    cells = [(text, words, lines) for text, words, lines in driver.execute_script(LINES) if words > 2]
    assert len(cells) > 100
    assert [(text, lines) for text, words, lines in cells if lines >= words] == []


def _channels(colour: str) -> list[int]:
    return [int(part) for part in colour.split("(")[1].rstrip(")").split(",")[:3]]


def test_on_paper_everything_is_open(shown):
    shown.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert shown.execute_script("return [...document.querySelectorAll('details')].every(d => d.open)")


def test_how_to_read_the_page_is_open_once_and_terms_open_the_glossary(shown):
    shown.execute_script("localStorage.clear()")
    shown.refresh()
    assert shown.find_element("id", "how-to-read").get_property("open")
    shown.refresh()
    assert not shown.find_element("id", "how-to-read").get_property("open")
    glossary = shown.find_element("id", "glossary")
    assert not glossary.get_property("open")
    term = shown.find_element("css selector", "p.found a.term")
    term.click()
    assert glossary.get_property("open")
    assert shown.find_element("id", term.get_dom_attribute("href").removeprefix("#")).is_displayed()


# The page of an atlas.


@pytest.fixture
def atlas(driver, atlas_page):
    _look(driver, "desktop", "light")
    driver.get(atlas_page.as_uri())
    return driver


def _shown(driver) -> list:
    return [row for row in driver.find_elements("css selector", ".atlas tbody tr") if row.is_displayed()]


def _sorted_by(driver, key: str) -> list[str | None]:
    return driver.execute_script(
        "return [...document.querySelectorAll('.atlas tbody tr')].map("
        f"r => r.querySelector('[data-key={key}]')?.dataset.sort ?? null)"
    )


def test_a_head_sorts_the_models_both_ways_and_the_unknown_stays_last(atlas):
    for head in atlas.find_elements("css selector", ".atlas thead th"):
        key, kind = head.get_dom_attribute("data-key"), head.get_dom_attribute("data-kind")
        convert = float if kind == "number" else str
        orders = ("descending", "ascending") if kind == "number" else ("ascending", "descending")
        for order in orders:
            head.find_element("tag name", "button").click()
            assert head.get_dom_attribute("aria-sort") == order
            assert len(atlas.find_elements("css selector", "[aria-sort]")) == 1
            values = _sorted_by(atlas, key)
            known = [convert(value) for value in values if value]
            assert known == sorted(known, reverse=order == "descending")
            assert all(not value for value in values[len(known) :])


def test_a_family_is_chosen_and_the_models_shown_are_counted(atlas, atlas_rows):
    from selenium.webdriver.support.ui import Select

    choice, count = Select(atlas.find_element("id", "family")), atlas.find_element("id", "count")
    everything = len(atlas_rows)
    assert len(_shown(atlas)) == everything
    assert len(choice.options) > 3
    for option in choice.options:
        choice.select_by_visible_text(option.text)
        family, said = option.get_dom_attribute("value"), option.text
        shown = _shown(atlas)
        assert said.endswith(f"({len(shown)})")
        assert count.text == f"{len(shown)} of {everything} shown"
        assert all(family in ("", row.get_dom_attribute("data-family")) for row in shown)


@pytest.mark.parametrize(("width", "scheme"), [("desktop", "light"), ("desktop", "dark"), ("phone", "dark")])
def test_an_atlas_shuts_no_one_out(driver, atlas_page, width, scheme):
    import axe_selenium_python

    driver.get_log("browser")
    _look(driver, width, scheme)
    driver.get(atlas_page.as_uri())
    assert driver.execute_script("return document.documentElement.scrollWidth") <= WIDTHS[width][0]
    for closed in driver.find_elements("css selector", "details"):
        driver.execute_script("arguments[0].open = true", closed)
    axe = axe_selenium_python.Axe(driver)
    axe.inject()
    violations = axe.run()["violations"]
    assert violations == [], axe.report(violations)
    if width == "phone":  # every cell lies in the window, and no column is a word wide
        for cell in driver.find_elements("css selector", ".atlas tbody td"):
            assert cell.rect["x"] + cell.rect["width"] <= WIDTHS[width][0]
            assert cell.rect["width"] > 300
    assert driver.get_log("browser") == []
