"""For everyone: names and roles as the browser computes them, contrast, widths, colour schemes."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NAMED = {
    "button", "textbox", "option", "listbox", "dialog", "img", "image", "heading", "application",
    "progressbar", "group", "link", "region", "navigation", "complementary",
}  # fmt: skip

# Every text that shows, its colour over what is painted behind it, by the formula of WCAG 2.
CONTRASTS = """() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((c, i) => c * a + under[i] * (1 - a));
  const behind = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour[3] > 0) layers.push(colour);
      if (colour[3] === 1) break;
    }
    return layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255]);
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((c) => c / 255)
      .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].filter((child) => child.nodeType === 3);
    const text = own.map((child) => child.data.trim()).join("");
    const shown = { visibilityProperty: true, opacityProperty: true };
    if (!text || !node.checkVisibility(shown)) continue;
    if (node.closest(".tile, .unseen, .skip") || node.disabled) continue;
    const style = getComputedStyle(node);
    const ground = behind(node);
    const [a, b] = [light(over(parse(style.color), ground)), light(ground)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""


def states(filled):
    """Names the page's states, putting it into each."""
    page = filled.page
    yield "pictures"
    filled.tile("05.jpg").click()
    page.locator("#inspector .sheet").focus()
    page.keyboard.press("Enter")
    yield "a picture and a box"
    page.get_by_role("button", name="Map", exact=True).click()
    page.get_by_text("placed by neighbourhood").wait_for()
    yield "map"
    page.get_by_role("button", name="Pictures", exact=True).click()
    filled.tile("12.jpg").focus()
    page.keyboard.press("c")
    page.get_by_role("dialog").get_by_role("img").nth(1).wait_for()
    yield "comparison"
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Clear", exact=True).click()
    yield "empty"


def test_everything_has_a_name(filled):
    session = filled.page.context.new_cdp_session(filled.page)
    for state in states(filled):
        seen = set()
        for node in session.send("Accessibility.getFullAXTree")["nodes"]:
            role = node.get("role", {}).get("value")
            if node["ignored"] or role not in NAMED:
                continue
            seen.add(role)
            assert node.get("name", {}).get("value", "").strip(), (state, node)
        assert {"heading", "button"} <= seen, state
        page = filled.page
        ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map(({ id }) => id)")
        assert len(ids) == len(set(ids))
        assert page.evaluate("() => document.querySelectorAll('[tabindex]').length") < 200
        assert page.locator(".grid [tabindex='0']").count() <= 1  # one stop of the Tab key
        assert page.locator("h1").count() == 1


def test_text_stands_out_in_light_and_in_dark(filled):
    grounds = set()
    for state in states(filled):
        for scheme in ("light", "dark"):
            filled.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            assert filled.page.evaluate(CONTRASTS) == [], (state, scheme)
            ground = "() => getComputedStyle(document.body).backgroundColor"
            grounds.add(filled.page.evaluate(ground))
    assert len(grounds) == 2


def test_narrow_windows_do_not_scroll_sideways(filled):
    filled.page.set_viewport_size({"width": 340, "height": 700})
    for state in states(filled):
        size = filled.page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
        assert size[0] <= size[1], state
