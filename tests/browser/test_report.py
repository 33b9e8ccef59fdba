"""The report as its readers meet it: in Chromium, by mouse and keyboard, on a desktop and on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from stylize_batch.job.reporting import report
from stylize_batch.results import Outcome
from tests.browser.chromium import DESKTOP, PHONE, Browser, chromium
from tests.conftest import Row
from tests.report.roots import make_root, row
from tests.report.test_page import HOSTILE

pytestmark = pytest.mark.browser

LONG = "a-very-long-name-without-a-place-to-break-" * 6


@pytest.fixture(scope="module")
def page(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of 40 pictures and some failures, with names that would do harm if anything let them."""
    root = tmp_path_factory.mktemp("run") / "out"
    contents = sorted((pictures / "content").iterdir())
    styles = [f"style/{style.name}" for style in sorted((pictures / "style").iterdir())]
    rows: list[Row] = []
    for number in range(40):
        content = contents[number % 6]
        picture = root / "images" / f"{number}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(content) as image:
            image.rotate(number).save(picture)
        outcome = Outcome(None, 1 + number * 0.1, 9 - number * 0.2, 2.0, 48, 64)
        hostile = HOSTILE[number % len(HOSTILE)] if number % 3 == 0 else "plain"
        style = styles[: 1 + number % 4]
        columns = {"label": hostile, "split": "val" if number % 4 else "train", "note": LONG}
        rows.append(
            row(f"content/{content.name}", style, outcome, str(picture), **columns, alpha=1 - number / 100)
        )
    for number, name in enumerate((*HOSTILE, LONG)):
        failed = Outcome(error=f"NotFound: {name} does not exist")
        columns = {"label": name, "split": "test", "note": ""}
        rows.append(row(f"{name}{number}.jpg", [styles[0]], failed, **columns))
    make_root(root, [rows[start : start + 8] for start in range(0, 48, 8)], pictures)
    return Path(report(str(root)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(autouse=True)
def no_error_and_no_request(browser: Browser, page: Path) -> Iterator[None]:
    """Whatever a test does, the console stays silent and nothing but the page itself is ever loaded."""
    yield
    assert browser.messages() == []
    assert set(browser.requests()) <= {page.as_uri()}


def cards(browser: Browser) -> list[WebElement]:
    return [
        card for card in browser.driver.find_elements(By.CSS_SELECTOR, "#grid > li") if card.is_displayed()
    ]


def choose(browser: Browser, name: str, value: str) -> None:
    Select(browser.driver.find_element(By.CSS_SELECTOR, f"#filters {name}")).select_by_value(value)


def shown(browser: Browser) -> str:
    return browser.driver.find_element(By.ID, "shown").text


def viewer(browser: Browser) -> WebElement:
    return browser.driver.find_element(By.ID, "viewer")


def test_filters_narrow_the_grid_together_and_clear_at_once(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert (shown(browser), len(cards(browser))) == ("48 pairs", 24)
    choose(browser, "[name=status]", "failed")
    assert (shown(browser), len(cards(browser))) == (f"{len(HOSTILE) + 1} of 48 pairs", len(HOSTILE) + 1)
    choose(browser, "[data-column=label]", f"={HOSTILE[0]}")
    assert shown(browser) == "1 of 48 pairs"
    browser.driver.find_element(By.CSS_SELECTOR, "#filters [type=reset]").click()
    browser.wait(lambda: shown(browser) == "48 pairs")
    choose(browser, "[data-column=split]", "=train")
    assert shown(browser) == "10 of 48 pairs"
    browser.driver.find_element(By.NAME, "text").send_keys("macaw no-such-word")
    assert shown(browser) == "No pair matches"


def test_a_search_finds_names_labels_and_errors(browser: Browser, page: Path) -> None:
    browser.open(page)
    field = browser.driver.find_element(By.NAME, "text")
    for text, count in (("MACAW", 6), ("does not exist", 8), ("notfound </script>", 1)):
        field.clear()
        field.send_keys(text)
        assert shown(browser) == f"{count} of 48 pairs", text


def test_pairs_are_ordered_by_a_loss_and_failed_ones_stand_last(browser: Browser, page: Path) -> None:
    browser.open(page)
    for order, first in (("style_loss", "1.20"), ("-style_loss", "9.00")):
        choose(browser, "[name=order]", order)
        browser.run("document.getElementById('more').click()")
        assert f"style {first}" in cards(browser)[0].text
        assert "does not exist" in cards(browser)[-1].text
        choose(browser, "[name=order]", "")


def test_the_rest_is_shown_on_demand_and_focus_goes_on_with_it(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.driver.find_element(By.ID, "more").send_keys(Keys.ENTER)
    assert len(cards(browser)) == 48
    assert browser.run("return document.activeElement === document.querySelectorAll('#grid button')[24]")


def test_a_pair_opens_and_closes_by_keyboard_and_focus_returns(browser: Browser, page: Path) -> None:
    browser.open(page)
    keys = ActionChains(browser.driver)
    first, second = (card.find_element(By.TAG_NAME, "button") for card in cards(browser)[:2])
    browser.run("arguments[0].focus()", first)
    keys.send_keys(Keys.ENTER).perform()
    assert viewer(browser).is_displayed()
    assert "Style loss" in viewer(browser).text
    browser.wait(
        lambda: browser.run(
            "return [...document.querySelectorAll('#viewer img')].every((each) => each.naturalWidth > 0)"
        )
    )
    before = viewer(browser).text
    keys.send_keys(Keys.ARROW_RIGHT).perform()
    assert viewer(browser).text != before
    keys.send_keys(Keys.ARROW_LEFT).perform()
    assert viewer(browser).text == before
    keys.send_keys(Keys.ESCAPE).perform()
    browser.wait(lambda: not viewer(browser).is_displayed())
    assert browser.driver.switch_to.active_element == first
    second.click()
    browser.driver.find_element(By.ID, "close").click()
    assert not viewer(browser).is_displayed()


def test_an_example_of_a_failure_opens_with_its_reason_as_text(browser: Browser, page: Path) -> None:
    browser.open(page)
    example = browser.driver.find_element(By.CSS_SELECTOR, ".example")
    reason = example.find_element(By.CLASS_NAME, "reason").text
    browser.run("arguments[0].click()", example)
    assert "NotFound" in viewer(browser).text
    assert reason in viewer(browser).text


def test_links_lead_to_the_pictures_beside_the_page(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("document.querySelector('#grid button').click()")
    links = browser.run("return [...document.querySelectorAll('#viewer .output a')].map((each) => each.href)")
    assert [Path(link.removeprefix("file://")).parent for link in links] == [page.parent / "images"]
    assert Path(links[0].removeprefix("file://")).exists()


def test_tables_are_sorted_by_any_column_both_ways(browser: Browser, page: Path) -> None:
    browser.open(page)
    heads = browser.driver.find_elements(By.CSS_SELECTOR, "table:first-of-type thead th")[:5]

    def column() -> list[float]:
        cells = browser.run(
            "return [...document.querySelector('tbody').rows].map((row) => row.cells[4].dataset.value)"
        )
        return [float(cell) for cell in cells]

    for direction in ("descending", "ascending"):
        browser.run("arguments[0].click()", heads[4].find_element(By.TAG_NAME, "button"))
        assert heads[4].get_attribute("aria-sort") == direction
        assert column() == sorted(column(), reverse=direction == "descending")
    assert heads[0].get_attribute("aria-sort") == "none"


def test_pictures_load_when_they_come_near_and_all_of_them_for_print(browser: Browser, page: Path) -> None:
    browser.open(page)
    count = "return document.querySelectorAll('img[data-image][src]').length"
    total = browser.run("return document.querySelectorAll('img[data-image]').length")
    browser.wait(lambda: 0 < browser.run(count) < total)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run(count) == total


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_nothing_sticks_out_and_text_stands_out_in_every_light(
    browser: Browser, page: Path, size: tuple[int, int], dark: bool
) -> None:
    browser.open(page, size, dark=dark)
    browser.run("document.getElementById('more').click()")
    assert browser.run("return document.documentElement.scrollWidth") <= size[0]
    assert not browser.run(
        """
        const inside = (each) => each.closest(".scroll, .skip, svg, dialog, [hidden]");
        return [...document.body.querySelectorAll("*")].filter(
          (each) => !inside(each) && each.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5,
        ).map((each) => each.outerHTML.slice(0, 200));
        """
    )
    background, *colours = browser.run(
        """
        const of = (selector, property) => getComputedStyle(document.querySelector(selector))[property];
        return [of("body", "backgroundColor"), of("body", "color"), of(".lead", "color"), of(".facts", "color"),
                of(".kind h3", "color"), of("footer", "color"), of("th button", "color")];
        """
    )
    assert (luminance(background) < 0.1) is dark
    for colour in colours:
        assert contrast(colour, background) >= 4.5, colour
    bar = browser.run("return getComputedStyle(document.querySelector('.chart .bar')).fill")
    assert contrast(bar, background) >= 3
    browser.run("document.querySelector('#grid button').click()")
    assert browser.run("return viewer.scrollWidth <= viewer.clientWidth && viewer.clientWidth <= innerWidth")


def test_hostile_names_are_read_as_they_are(browser: Browser, page: Path) -> None:
    browser.open(page)
    text = browser.run("return document.querySelector('#failures').closest('section').textContent")
    assert any(name in text for name in HOSTILE)
    assert browser.run("return document.querySelectorAll('[onerror], iframe, main script').length") == 0
    assert browser.run("return document.scripts.length") == 3


def luminance(colour: str) -> float:
    """WCAG's relative luminance of `rgb(r, g, b)`."""
    channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)
