"""report.html in headless Chromium: it opens from disk, sorts, shows pictures, filters, and selects in both latents.

The tests share one tab and run in order.
"""

from contextlib import closing

import pytest

from tests.browser import CHROMIUM, Browser
from tests.report_runs import DRAWN
from tests.test_page import ORDER, RUNS, write_page

pytest.importorskip("websocket", reason="websocket-client of requirements-test.txt is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

# what the page's own script knows, and where on the screen an image is in a plane
KNOWN = """
window.drawn = Bokeh.documents[0];
window.source = drawn.get_model_by_name("points");
window.rings = drawn.get_model_by_name("rings");
window.place = (side, image) => {
  const view = [...Bokeh.index].find((view) => view.model.name === `plane${side}`);
  view.el.scrollIntoView({block: "center"});
  const box = view.el.getBoundingClientRect(), {frame} = view;
  return [box.left + frame.x_scale.compute(source.data[`x${side}`][image]),
          box.top + frame.y_scale.compute(source.data[`y${side}`][image])];
};
window.shown = () => by("picture").innerText;
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    write_page(folder, RUNS)
    with closing(Browser(folder / "profile")) as browser:
        browser.open(folder / "report.html")
        browser.run(KNOWN)
        yield browser


def column(tab: Browser, number: int) -> list[str]:
    return tab.run(f"[...document.querySelector('table').tBodies[0].rows].map((row) => row.cells[{number}].innerText)")


def point_at(tab: Browser, side: int, image: int) -> None:
    tab.mouse("Moved", *tab.run(f"place({side}, {image})"))
    settle(tab)


def leave(tab: Browser) -> None:
    tab.mouse("Moved", 5, 5)
    settle(tab)


def settle(tab: Browser) -> None:
    """Until what follows from an event, at the pace of the screen, has been done."""
    tab.run("new Promise((done) => setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), 200))")


def alone(tab: Browser, side: int) -> int:
    """An image with no other within a dot's width in a plane."""
    return tab.run(f"""(() => {{
      const {{x{side}: x, y{side}: y}} = source.data, all = [...x.keys()];
      const apart = (one, other) => Math.hypot(x[one] - x[other], y[one] - y[other]) > 0.04;
      return all.find((one) => all.every((other) => one === other || apart(one, other)));
    }})()""")


def test_a_header_sorts_by_a_click_and_by_the_keyboard_and_what_is_missing_stays_last(tab):
    before = column(tab, 0)
    header = "document.querySelectorAll('table')[0].querySelectorAll('thead button')"
    names = tab.run(f"[...{header}].map((button) => button.innerText.replaceAll('\\u2011', '-'))")
    dose, probe = names.index("Dose λ, %"), names.index("Probe top-1")
    tab.run(f"{header}[{probe}].click()")
    values = [float(text.split()[0]) for text in column(tab, probe) if text != "-"]
    assert values == sorted(values, reverse=True) and column(tab, 0) != before
    assert tab.run(f"{header}[{probe}].closest('th').ariaSort") == "descending"
    for _ in range(2):
        tab.run(f"{header}[{dose}].focus()")
        tab.key("Enter", text="\r")
        texts = column(tab, dose)
        assert texts[0].startswith("+") and set(texts[texts.index("-") :]) == {"-"}
    assert tab.run(f"{header}[{dose}].closest('th').ariaSort") == "ascending"
    assert tab.run(f"{header}[{probe}].closest('th').ariaSort") is None


def test_what_a_column_is_is_said_under_the_pointer_and_at_the_focus(tab):
    tab.run("document.querySelector('#results').scrollIntoView()")
    tab.run("document.activeElement.blur()")
    assert tab.run("by('legend').hidden")
    box = "document.querySelectorAll('thead button')[1].getBoundingClientRect()"
    tab.mouse("Moved", tab.run(f"{box}.left + 5"), tab.run(f"{box}.top + 5"))
    assert tab.run("by('legend').innerText").startswith("Replicates: ")
    tab.mouse("Moved", 5, 5)
    assert tab.run("by('legend').hidden")
    tab.run("document.querySelectorAll('thead button')[3].focus()")
    assert tab.run("by('legend').innerText").startswith("kNN:")
    tab.key("Escape")
    assert tab.run("by('legend').hidden")


def test_a_dot_under_the_pointer_shows_its_picture_and_its_neighbors_and_both_planes_mark_them(tab):
    image = alone(tab, 0)
    point_at(tab, 0, image)
    tab.until(f"shown().includes('test image {DRAWN[image]}')")
    assert tab.run("document.querySelectorAll('#picture .tile').length") == 11
    tile = "document.querySelector('#picture .tile')"
    assert "data:image/webp" in tab.run(f"getComputedStyle({tile}).backgroundImage")
    assert tab.run(f"{tile}.getBoundingClientRect().width") > 60
    assert tab.run(f"{tile}.ariaLabel") == tab.run(f"source.data.class[{image}]")
    for side in "01":
        assert tab.run(f"rings.data.x{side}[0]") == tab.run(f"source.data.x{side}[{image}]")
    assert tab.run("rings.data.marker.join()") == ",".join(["circle"] * 6 + ["square"] * 5)


def test_a_class_that_is_not_checked_is_neither_drawn_nor_found(tab):
    image = alone(tab, 1)
    label = tab.run(f"source.data.class[{image}]")
    leave(tab)
    tab.run("by('next').click()")
    before = tab.run("shown()")
    tab.run(f"[...by('classes').querySelectorAll('label')].find((l) => l.innerText.includes({label!r})).click()")
    filtered = tab.run("drawn.get_model_by_name('classes').booleans")
    assert [not seen for seen in filtered] == tab.run(f"source.data.class.map((name) => name === {label!r})")
    point_at(tab, 1, image)
    assert tab.run("shown()") == before
    tab.run("by('all').click()")
    leave(tab)
    point_at(tab, 1, image)
    tab.until(f"shown().includes('test image {DRAWN[image]}')")


def test_a_lasso_in_one_latent_selects_the_same_images_in_the_other(tab):
    left, top = tab.run("place(0, source.data.x0.indexOf(Math.min(...source.data.x0)))")
    corners = [(left - 8, top - 90), (left + 150, top - 90), (left + 150, top + 90), (left - 8, top + 90)]
    before = tab.run("source.selected.indices.length")
    tab.mouse("Moved", *corners[0])
    tab.mouse("Pressed", *corners[0], button="left")
    for corner in (*corners[1:], corners[0]):
        tab.mouse("Moved", *corner, button="left")
    tab.mouse("Released", *corners[0], button="left")
    tab.until("source.selected.indices.length > 0")
    count = tab.run("source.selected.indices.length")
    assert before == 0 and 0 < count < 200
    assert tab.run("by('selection').innerText").startswith(f"{count} selected: ")
    planes = tab.run("[...Bokeh.index].filter((view) => /^plane/.test(view.model.name)).map((view) => "
                     "view.model.renderers[0].data_source.selected.indices.length)")  # fmt: skip
    assert planes == [count, count]
    chosen = tab.run("source.selected.indices.slice().sort((a, b) => a - b)")
    tab.run("by('next').click()")
    assert tab.run("shown()").split("\n")[1] in {f"test image {DRAWN[image]}" for image in chosen}
    tab.run("by('clear').click()")
    assert tab.run("by('selection').innerText") == "Nothing is selected."


def test_another_latent_moves_its_plane_alone_and_brings_its_own_neighbors(tab):
    assert tab.run("[...by('latent0').options].map((option) => option.text)") == ORDER
    before = tab.run("[[...source.data.x0], [...source.data.x1], rings.data.x0.slice(1, 6)]")
    tab.run("by('latent1').focus()")
    tab.key("End")
    tab.until(f"by('latent1').value === '{len(ORDER) - 1}'")
    after = tab.run("[[...source.data.x0], [...source.data.x1], rings.data.x0.slice(1, 6)]")
    assert before[0] == after[0] and before[1] != after[1] and before[2] == after[2]
    assert f"Nearest in {ORDER[-1]}" in tab.run("shown()")


def test_the_keyboard_walks_from_image_to_image(tab):
    tab.run("by('next').focus()")
    seen = []
    for _ in range(3):
        tab.key("Enter", text="\r")
        seen.append(tab.run("shown()").split("\n")[1])
    assert len(set(seen)) == 3
    tab.run("by('previous').click()")
    assert tab.run("shown()").split("\n")[1] == seen[1]
    tab.run("document.querySelector('#picture button').focus()")
    tab.key("Enter", text="\r")
    assert tab.run("shown()").split("\n")[1] not in seen[1:]


def test_nothing_was_refused_said_on_the_console_or_fetched(tab):
    assert tab.errors == []
    fetched = tab.run("performance.getEntriesByType('resource').map((each) => each.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []


# WCAG 2's contrast of text and what is behind it, and the width of what does not fit the window
READABLE = """(() => {
  const light = (color) => color.match(/\\d+/g).slice(0, 3).map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, number) => sum + part * [0.2126, 0.7152, 0.0722][number], 0);
  const style = getComputedStyle(document.body), lights = [light(style.color), light(style.backgroundColor)];
  const contrast = (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05);
  return [lights[1], contrast, document.documentElement.scrollWidth - window.innerWidth];
})()"""


@pytest.mark.parametrize(("dark", "scale"), [(False, 2), (False, 4), (True, 1)])
def test_the_page_is_readable_in_the_dark_and_zoomed(dark, scale, tmp_path):
    write_page(tmp_path, RUNS)
    with closing(Browser(tmp_path / "profile", scale=scale, dark=dark)) as browser:
        browser.open(tmp_path / "report.html")
        browser.run("document.getElementById('next').click()")  # a picture and its neighbors are shown
        behind, contrast, beyond = browser.run(READABLE)
        assert (behind < 0.05) == dark and contrast > 7 and beyond <= 0
        assert not browser.errors
