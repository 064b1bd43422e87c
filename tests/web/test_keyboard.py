"""Everything on every screen can be reached by the Tab key, and shows that it is."""
from hotlora.tests.web.conftest import until

REACHED = """() => {
  const one = document.activeElement;
  if (one === document.body || one.dataset.reached) return null;
  one.dataset.reached = "yes";
  const style = getComputedStyle(one.type === "radio" ? one.parentElement : one);
  return { what: one.outerHTML.slice(0, 120), shown: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0 };
}"""
# of a group of radio buttons and of the grid of pictures one is reached, and arrow keys lead to the others
MISSED = """() => [...document.querySelectorAll("a[href], button, input:not([type=radio]), select, textarea, summary, [tabindex='0']")]
  .filter((one) => !one.dataset.reached && one.tabIndex >= 0 && !one.disabled && one.checkVisibility({ visibilityProperty: true })
    && !one.closest("details:not([open]) > :not(summary)")).map((one) => one.outerHTML.slice(0, 120))"""
GROUPS = """() => [...new Set([...document.querySelectorAll("input[type=radio]")].map((one) => one.name))]
  .filter((name) => !document.querySelector(`input[name=${name}][data-reached]`))"""


def test_the_tab_key_reaches_everything_and_shows_where_it_is(server, open_page, gallery):
    job = server.post("jobs", {"settings": {"train_data_dir": str(gallery), "name": "m", "trigger": "sks", "steps": 2, "resolution": 64,
                                            "preview_steps": 1, "save_steps": 1}})
    server.until(job["id"], "completed")
    page = open_page(server)
    page.evaluate("folder => localStorage.setItem('hotlora.form', JSON.stringify({ folder, name: 'm', trigger: 'sks' }))", str(gallery))
    for screen in ("train", "gallery", "run", "try", "runs"):
        page.goto(f"{server.url}/hotlora/#/{screen}")
        page.reload()
        page.wait_for_selector(f".screen-{screen} :is(.run-head, .cell, .main-actions, .runs, button)")
        until(page, "!document.querySelector('main [aria-busy=true]')")
        seen = []
        page.keyboard.press("Tab")
        while found := page.evaluate(REACHED):
            seen.append(found)
            page.keyboard.press("Tab")
        assert len(seen) > 10, screen
        assert [one["what"] for one in seen if not one["shown"]] == [], screen
        assert page.evaluate(MISSED) == [] and page.evaluate(GROUPS) == [], screen
