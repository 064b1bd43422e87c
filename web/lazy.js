// Parts of the page that its first screen does without: loaded when they are shown, or before that when the page has nothing else to do.
import { useEffect, useState } from "./vendor/hooks.mjs";
import { html } from "./store.js";
import { t } from "./i18n.js";

const loaders = [];

// A view by its name in a module that is not there yet; `waiting` is shown until then.
export function lazy(load, name, waiting = () => html`<div class="empty quiet" aria-busy="true"></div>`) {
  let view = null;
  const fetched = () => load().then((module) => { view = module[name]; });
  loaders.push(fetched);
  return function Lazy(properties) {
    const [, redraw] = useState(0);
    const [wrong, setWrong] = useState(false);
    const isMissing = view === null;   // it may have come by the time of the effect, and that draws nothing
    useEffect(() => {
      if (!isMissing || wrong) return;
      fetched().then(() => redraw(1), () => setWrong(true));
    }, [wrong]);
    if (view) return html`<${view} ...${properties} />`;
    // some browsers remember that a module did not come, so that only a new page can ask for it again
    if (wrong) return html`<div class="problem" role="alert"><p>${t("error.part")}</p><button type="button" class="button" onClick=${() => location.reload()}>${t("again")}</button></div>`;
    return waiting();
  };
}

// All of them, so that they are there also when the server is not; one that does not come is asked for again when it is shown.
export function fetchLater() {
  const rest = [...loaders];
  const next = () => {
    const load = rest.shift();
    if (load) load().then(later, later);
  };
  const later = () => (window.requestIdleCallback ? requestIdleCallback(next, { timeout: 2000 }) : setTimeout(next, 200));
  later();
}

export function addStyle(href) {
  if ([...document.styleSheets].some((sheet) => sheet.href === href) || document.querySelector(`link[href$="/${href.split("/").at(-1)}"]`)) return;
  document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href }));
}
