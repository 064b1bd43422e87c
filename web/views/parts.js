// Small pieces that several screens use.
import { useEffect, useId, useRef, useState } from "../vendor/hooks.mjs";
import { html } from "../store.js";
import { duration, number, said, t } from "../i18n.js";

const PATHS = {
  flame: "M12.6 2.5c.5 3.4 5.9 5.3 5.9 10.8A6.5 6.5 0 0 1 12 20a6.5 6.5 0 0 1-6.5-6.7c0-3 1.7-4.8 3-6.3.2 1.6.8 2.6 1.8 3.2-.1-2.8.5-5.6 2.3-7.7Z",
  layers: "M12 3 3 8l9 5 9-5-9-5ZM3 12.5l9 5 9-5M3 17l9 5 9-5",
  plug: "M9 3v5m6-5v5M6 8h12v3a6 6 0 0 1-12 0V8Zm6 9v4",
  x: "M6 6l12 12M18 6 6 18",
  folder: "M3 6.5A1.5 1.5 0 0 1 4.5 5H9l2 2.5h8.5A1.5 1.5 0 0 1 21 9v9a1.5 1.5 0 0 1-1.5 1.5h-15A1.5 1.5 0 0 1 3 18V6.5Z",
  images: "M4 7.5A1.5 1.5 0 0 1 5.5 6h11A1.5 1.5 0 0 1 18 7.5v9a1.5 1.5 0 0 1-1.5 1.5h-11A1.5 1.5 0 0 1 4 16.5v-9ZM4 15l4-4 5 5m-1-2 2.5-2.5L18 15M7.5 3H19a2 2 0 0 1 2 2v10",
  play: "M8 5.5v13l10.5-6.5L8 5.5Z",
  pause: "M8 5.5v13m8-13v13",
  stop: "M6.5 6.5h11v11h-11z",
  save: "M12 4v11m0 0-4-4m4 4 4-4M5 19.5h14",
  image: "M4 6.5A1.5 1.5 0 0 1 5.5 5h13A1.5 1.5 0 0 1 20 6.5v11a1.5 1.5 0 0 1-1.5 1.5h-13A1.5 1.5 0 0 1 4 17.5v-11ZM4 16l4.5-4.5L14 17m-2-2 3-3 5 5M15.5 9h.01",
  copy: "M9 9h10.5v10.5H9zM5.5 15H4.5V4.5H15v1",
  wand: "M5 19 15.5 8.5M14 4v3m-1.5-1.5h3M19 9.5v3m-1.5-1.5h3M18.5 4.5h.01",
  trash: "M5 7h14M10 7V4.5h4V7m-7.5 0 .8 12h9.4l.8-12M10.5 11v5m3-5v5",
  undo: "M8 5 4 9l4 4M4 9h9.5a5.5 5.5 0 0 1 0 11H9",
  up: "M12 19V5m0 0-6 6m6-6 6 6",
  down: "M12 5v14m0 0-6-6m6 6 6-6",
  left: "M15 5l-7 7 7 7",
  right: "M9 5l7 7-7 7",
  again: "M19.5 12a7.5 7.5 0 1 1-2.4-5.5M19.5 4v4h-4",
  warn: "M12 4 2.5 20h19L12 4Zm0 6v4.5m0 2.5h.01",
  check: "M5 12.5 10 17.5 19.5 7",
  plus: "M12 5v14M5 12h14",
  bell: "M6 16.5V11a6 6 0 0 1 12 0v5.5l1.5 1.5h-15L6 16.5ZM10 20.5h4",
  search: "M10.5 4a6.5 6.5 0 1 1 0 13 6.5 6.5 0 0 1 0-13Zm5 11.5L20 20",
};

export function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false"><path d=${PATHS[name]} /></svg>`;
}

// A checkpoint without its folders and suffix.
export const shortName = (name) => name.split(/[\\/]/).at(-1).replace(/\.(safetensors|ckpt)(\s.*)?$/, "");

export function Field({ label, hint, error, children }) {
  const id = useId();
  return html`<div class=${`field ${error ? "has-error" : ""}`}>
    <label for=${id}>${label}</label>
    ${children(id, hint || error ? `${id}-hint` : undefined)}
    ${(hint || error) && html`<p class=${error ? "field-error" : "hint"} id=${`${id}-hint`}>${error || hint}</p>`}
  </div>`;
}

// An error in one sentence, with the details folded. Nothing is shown without one.
export function Problem({ error, onClose }) {
  if (!error) return null;
  const sentence = typeof error === "string" ? error : error.message;
  const details = typeof error === "string" ? "" : error.details;
  return html`<div class="problem" role="alert">
    <${Icon} name="warn" />
    <div class="problem-text"><p>${said(sentence)}</p>
      ${details && html`<details><summary>${t("details")}</summary><pre>${details}</pre></details>`}</div>
    ${onClose && html`<button class="icon-button" aria-label=${t("close")} onClick=${onClose}><${Icon} name="x" /></button>`}
  </div>`;
}

const REST = 600;   // ms in which the second half of a double click comes

// A button whose work may take a while and may fail: it waits, and hands the error to `onError`. What makes something new with each click
// is done `once` by a double click.
export function Action({ icon, label, run, onError, kind = "", disabled, title, compact, once }) {
  const [busy, setBusy] = useState(false);
  const alive = useRef(true);
  useEffect(() => () => { alive.current = false; }, []);
  const act = async () => {
    setBusy(true);
    onError?.(null);
    try {
      await run();
      if (once) await new Promise((rested) => { setTimeout(rested, REST); });
    } catch (error) {
      onError?.(error);
    } finally {
      if (alive.current) setBusy(false);
    }
  };
  return html`<button type="button" class=${`button ${kind} ${compact ? "compact" : ""}`} disabled=${disabled || busy} aria-busy=${busy}
    title=${title ?? (compact ? label : undefined)} onClick=${act}>${icon && html`<${Icon} name=${icon} />`}${
    compact ? html`<span class="hidden">${label}</span>` : html`<span>${label}</span>`}</button>`;
}

export function Progress({ job }) {
  const share = job.total_steps ? Math.min(1, job.step / job.total_steps) : 0;
  const unknown = job.status === "preparing";
  return html`<div class=${`progress ${job.status} ${unknown ? "unknown" : ""}`} role="progressbar" aria-label=${t("run.progress", { name: job.name })}
    aria-valuemin="0" aria-valuemax="100" aria-valuenow=${unknown ? undefined : Math.floor(share * 100)}>
    <div style=${{ width: unknown ? undefined : `${share * 100}%` }}></div></div>`;
}

export const Badge = ({ status }) => html`<span class=${`badge ${status}`}>${t(`status.${status}`)}</span>`;

export function progressText(job) {
  const parts = [t("run.steps", { step: number(job.step), total: number(job.total_steps) })];
  if (job.status === "running" && job.seconds_left != null) parts.push(t("run.left", { time: duration(job.seconds_left) }));
  if (job.loss != null) parts.push(t("run.loss", { loss: job.loss.toPrecision(3) }));
  return parts.join(" · ");
}

export function Empty({ icon, title, children }) {
  return html`<div class="empty"><${Icon} name=${icon} /><h2>${title}</h2>${children}</div>`;
}

// One of a few, as a row of buttons; `clearable` when none is an answer too.
export function Choice({ legend, name, value, options, hint, onChange, clearable }) {
  return html`<fieldset class="choice"><legend>${legend}</legend>
    <div class="segments">${options.map(([key, label]) => html`<label class=${value === key ? "on" : ""}>
      <input type="radio" name=${`hl-${name}`} value=${key} checked=${value === key} onChange=${() => onChange(key)}
        onClick=${() => clearable && value === key && onChange("")} /><span>${label}</span></label>`)}</div>
    ${hint && html`<p class="hint">${hint}</p>`}
  </fieldset>`;
}

// The second column, where its top is out of sight: on a narrow page what a button of the first one has begun is below it.
export function showSecondColumn() {
  const column = document.querySelector(".hotlora .two-columns > :nth-child(2)");
  const top = column?.getBoundingClientRect().top;
  if (top < 0 || top > window.innerHeight / 2) column.scrollIntoView();
}

// Whether a text is in another script than most base models can read.
export const isForeign = (text) => /(?!\p{Script=Latin})\p{L}/u.test(text);

// A value that follows another one only when that has been still for a moment.
export function useSettled(value, wait = 300) {
  const [settled, setSettled] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), wait);
    return () => clearTimeout(timer);
  }, [value]);
  return settled;
}
