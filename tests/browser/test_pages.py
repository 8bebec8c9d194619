"""The site and the slides in Chromium: nothing from another host, nothing too wide, formulas set, figures described."""

import pytest

pytest.importorskip("sphinx", reason="Sphinx is not installed: make browser")
pytest.importorskip("sphinx_revealjs", reason="sphinx-revealjs is not installed: make browser")

from docs import build_site, build_slides

SLIDE = """() => {
    const frame = document.querySelector('.reveal').getBoundingClientRect(), slide = Reveal.getCurrentSlide();
    let bottom = 0, right = 0;
    for (const part of slide.querySelectorAll('*')) {
        const box = part.getBoundingClientRect();
        if (box.width && box.height) { bottom = Math.max(bottom, box.bottom); right = Math.max(right, box.right); }
    }
    const figure = slide.querySelector('.figure img')?.getBoundingClientRect();
    return {zoom: +slide.querySelector('.content').style.zoom || 1, figure: figure ? figure.width / frame.width : 1, fits: bottom <= frame.bottom + 1 && right <= frame.right + 1,
            words: slide.innerText.slice(0, 60), last: Reveal.isLastSlide()};
}"""


@pytest.fixture(scope="module")
def site(series, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    assert build_site.build(series.folder, folder, "tiny") == 0
    return folder / "html"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_every_page_of_the_site_is_whole(chromium, site, pictures, width, scheme):
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    elsewhere = []
    page.on(
        "request",
        lambda request: elsewhere.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
    )
    for path in sorted(p for p in site.rglob("*.html") if "_static" not in p.parts):
        page.goto(path.as_uri())
        page.wait_for_function(
            "document.querySelectorAll('mjx-container').length == document.querySelectorAll('.math').length"
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{path.name} is wider than the screen"
        assert page.locator("mjx-merror").count() == 0, path.name
        bare = page.evaluate("[...document.querySelectorAll('article img')].filter(i => !i.alt).length")
        assert not bare, f"{path.name}: {bare} pictures without a description"
        page.screenshot(path=pictures / f"{path.stem}-{scheme}-{width}.png", full_page=True)
    assert not elsewhere
    page.close()


def test_the_search_finds_a_word_without_a_server(chromium, site):
    page = chromium.new_page()
    page.goto((site / "search.html").as_uri() + "?q=checkpointing")
    page.wait_for_selector("#search-results li", timeout=30_000)
    page.wait_for_selector("#search-results li p.context")
    excerpts = page.locator("#search-results li p.context").all_inner_texts()
    assert "00 Check your machine" in page.inner_text("#search-results")
    assert any("checkpointing" in excerpt for excerpt in excerpts)
    page.close()


def test_a_figure_that_is_wider_than_a_phone_says_so(chromium, site):
    page = chromium.new_page(viewport={"width": 390, "height": 800})
    page.goto((site / "notebooks" / "00_setup_check.html").as_uri())
    page.wait_for_selector(".wide:has(img)")
    hint = page.evaluate("getComputedStyle(document.querySelector('.wide:has(img)'), '::before').content")
    assert "scroll sideways" in hint
    page.close()


def test_no_slide_overflows(chromium, series, tmp_path, pictures):
    page = chromium.new_page(viewport={"width": 1600, "height": 900})
    elsewhere = []
    page.on(
        "request",
        lambda request: elsewhere.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
    )
    decks = build_slides.build(series.folder / "notebooks", tmp_path / "slides")
    assert decks
    for deck in decks:
        page.goto(deck.as_uri())
        page.wait_for_function("window.Reveal && Reveal.isReady()")
        for number in range(200):
            page.wait_for_timeout(50)
            slide = page.evaluate(SLIDE)
            assert slide["fits"], f"{deck.stem}, slide {number + 1} overflows: {slide['words']}"
            assert slide["zoom"] > 0.7, f"{deck.stem}, slide {number + 1} is too full to be read: {slide['words']}"
            assert slide["figure"] > 0.9, f"{deck.stem}, slide {number + 1}: the figure has not the whole width"
            page.screenshot(path=pictures / f"slides-{deck.stem}-{number + 1}.png")
            if slide["last"]:
                break
            page.evaluate("Reveal.next()")
        assert slide["last"] and 1 < number < 12, f"{deck.stem} has {number + 1} slides"
    assert not elsewhere
    page.close()
