// The page: its header, its screens by the part of the address after #, and what is said over all of them.
import { render } from "./vendor/preact.mjs";
import { useEffect, useErrorBoundary, useState } from "./vendor/hooks.mjs";
import { html, useStore, dropToast } from "./store.js";
import { chooseLanguage, keepLanguage, language, LANGUAGES, said, t } from "./i18n.js";
import { askedLanguage, followTheme } from "./host.js";
import { activeJob, start } from "./live.js";
import { addStyle, fetchLater, lazy } from "./lazy.js";
import { Icon, shortName } from "./views/parts.js";
import { watchDrops } from "./views/pictures.js";
import { TrainScreen } from "./views/train.js";

const SCREENS = {
  train: TrainScreen,
  gallery: lazy(() => import("./views/gallery.js"), "GalleryScreen"),
  run: lazy(() => import("./views/run.js"), "RunScreen"),
  try: lazy(() => import("./views/try.js"), "TryScreen"),
  runs: lazy(() => import("./views/runs.js"), "RunsScreen"),
};

// `early` may have the first answers of the server, asked for before this module was there.
export async function mount(root, early) {
  root.classList.add("hotlora");
  addStyle(new URL("style.css", import.meta.url).href);
  await chooseLanguage(askedLanguage());
  followTheme(root.ownerDocument.documentElement === root.parentElement?.parentElement ? root.ownerDocument.documentElement : root);
  render(html`<${App} />`, root);
  watchDrops(root);
  start(early).then(fetchLater);
}

function route() {
  const [screen, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decoded);
  return SCREENS[screen] ? { screen, rest } : { screen: "train", rest: [] };
}

// An address that somebody typed may have a % that means itself.
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function App() {
  const [at, setAt] = useState(route);
  const [tongue, setTongue] = useState(language);
  useEffect(() => {
    const moved = () => setAt(route());
    window.addEventListener("hashchange", moved);
    return () => window.removeEventListener("hashchange", moved);
  }, []);
  const Screen = SCREENS[at.screen];
  const chosen = async (code) => {
    await keepLanguage(code);
    setTongue(code);
    requestAnimationFrame(() => document.querySelector(".hotlora .language select")?.focus());   // the page is drawn anew, and with it the list that had the focus
  };
  return html`<div class="page" key=${tongue}>
    <a class="skip" href="#hl-main" onClick=${(event) => { event.preventDefault(); document.getElementById("hl-main").focus(); }}>${t("nav.skip")}</a>
    <${Header} screen=${at.screen} onLanguage=${chosen} />
    <${Connection} />
    <main id="hl-main" tabindex="-1" class=${`screen screen-${at.screen}`}>
      <${Guarded} key=${location.hash}><${Screen} rest=${at.rest} /><//>
    </main>
    <${Toasts} />
    <${Title} />
  </div>`;
}

// A fault in one screen must not take the others with it, nor what was typed.
function Guarded({ children }) {
  const [error, again] = useErrorBoundary((what) => console.error(what));
  if (!error) return children;
  return html`<div class="problem" role="alert">
    <p>${t("error.page")}</p>
    <details><summary>${t("details")}</summary><pre>${String(error?.stack ?? error)}</pre></details>
    <button class="button" onClick=${again}>${t("again")}</button>
  </div>`;
}

function Header({ screen, onLanguage }) {
  const status = useStore((s) => s.status);
  // a single one on offer is loaded when it is needed
  const base = status?.base ?? (status?.bases?.length === 1 ? { name: status.bases[0], family: "" } : null);
  const running = useStore(activeJob);
  const links = [["train", t("nav.train")], ["gallery", t("nav.gallery")], ["run", t("nav.run")], ["try", t("nav.try")], ["runs", t("nav.runs")]];
  return html`<header class="header">
    <a class="brand" href="#/train" aria-label="HotLoRA"><${Icon} name="flame" /><span>HotLoRA</span></a>
    <nav aria-label=${t("nav.label")}>
      ${links.map(([name, label]) => html`<a href=${`#/${name}`} aria-current=${screen === name ? "page" : undefined}>${label}${
        name === "run" && running ? html`<span class="dot" title=${t("nav.running")}></span>` : ""}</a>`)}
    </nav>
    <div class="header-end">
      ${base && html`<span class="base" title=${t("base.title", base)}><${Icon} name="layers" />${shortName(base.name)}</span>`}
      <label class="language"><span class="hidden">${t("language")}</span>
        <select value=${language()} onChange=${(event) => onLanguage(event.target.value)}>
          ${Object.entries(LANGUAGES).map(([code, name]) => html`<option value=${code} lang=${code}>${name}</option>`)}
        </select></label>
    </div>
  </header>`;
}

function Connection() {
  const connection = useStore((s) => s.connection);
  const problem = useStore((s) => s.problem);
  if (connection !== "lost") return null;
  return html`<div class="banner" role="status"><${Icon} name="plug" />${problem ? said(problem.message) : t("connection.lost")}</div>`;
}

function Toasts() {
  const toasts = useStore((s) => s.toasts);
  return html`<div class="toasts" role="status" aria-live="polite">${toasts.map((one) => html`<div class="toast" key=${one.id}>
    <span>${one.text}</span>
    ${one.action && html`<button class="link" onClick=${() => { one.action.run(); dropToast(one.id); }}>${one.action.label}</button>`}
    <button class="icon-button" aria-label=${t("close")} onClick=${() => dropToast(one.id)}><${Icon} name="x" /></button>
  </div>`)}</div>`;
}

function Title() {
  const job = useStore(activeJob);
  useEffect(() => {
    const share = job?.total_steps ? Math.floor((100 * job.step) / job.total_steps) : 0;
    const before = !job ? "" : job.status === "paused" ? `⏸ ${share}% · ${job.name} · ` : job.status === "preparing" ? `… ${job.name} · ` : `${share}% · ${job.name} · `;
    document.title = `${before}HotLoRA`;
  }, [job]);
  return null;
}
