// Captions by a model: which one, what it has to download first, and what it leaves out; then how far it is.
import { useEffect, useRef, useState } from "../vendor/hooks.mjs";
import { html, useStore } from "../store.js";
import { get, post } from "../api.js";
import { sendCaptions } from "../captions.js";
import { getForm, settingsOf } from "../form.js";
import { galleryChanged } from "../gallery_data.js";
import { takeCaptioning } from "../live.js";
import { number, said, t } from "../i18n.js";
import { Action, Field, Icon, Problem } from "./parts.js";

const PURPOSES = ["any", "object", "person", "character", "style"];
const KNOWN = ["blip-base", "blip-large", "blip2", "coca", "clip", "wd"];

export function CaptionDialog({ folder, files, onClose }) {
  const dialog = useRef(null);
  const form = getForm();
  const [told, setTold] = useState(null);
  const [error, setError] = useState(null);
  const [model, setModel] = useState("");
  const [purpose, setPurpose] = useState(settingsOf(form).purpose ?? "any");
  const [trigger, setTrigger] = useState(form.trigger);
  const [subject, setSubject] = useState("");
  const [again, setAgain] = useState(false);
  useEffect(() => {
    dialog.current.showModal();
    get("gallery/captioners", { folder }).then((found) => {
      setTold(found);
      const usable = found.models.filter((one) => !one.lacks);
      setModel((usable.find((one) => one.here) ?? usable[0] ?? found.models[0]).model);
    }, setError);
  }, []);
  const chosen = told?.models.find((one) => one.model === model);
  const start = async () => {
    // what was typed counts as the user's, and the server must know it first
    await sendCaptions();
    const state = await post("gallery/caption", { folder, model, purpose, trigger: trigger.trim(), subject: subject.trim(), again, files, download: !chosen.here });
    takeCaptioning(state);
    dialog.current.close();
  };
  return html`<dialog class="asking" ref=${dialog} aria-labelledby="hl-caption-title" onClose=${onClose}>
    <header><h2 id="hl-caption-title">${t("caption.title")}</h2>
      <button type="button" class="icon-button" aria-label=${t("close")} onClick=${() => dialog.current.close()}><${Icon} name="x" /></button></header>
    ${!told && !error && html`<p class="hint" aria-busy="true">${t("plan.reading")}</p>`}
    ${told && html`<p>${files ? t("caption.some", { n: files.length }) : t("caption.missing", { n: told.missing, into: told.into })}</p>
      <p class="hint">${t("caption.promise")}</p>
      <${Field} label=${t("caption.model")} hint=${chosen && KNOWN.includes(chosen.model) ? t(`captioner.${chosen.model.replace("-", "_")}`) : ""}>
        ${(id, hint) => html`<select id=${id} aria-describedby=${hint} value=${model} onChange=${(event) => setModel(event.target.value)}>
          ${told.models.map((one) => html`<option value=${one.model}>${one.name} (${one.here ? t("caption.here") : t("caption.size", { size: one.gigabytes })})</option>`)}</select>`}<//>
      ${chosen && !chosen.here && !chosen.lacks && html`<p class="note"><${Icon} name="down" />${t("caption.download", { size: chosen.gigabytes, folder: chosen.folder })}</p>`}
      ${chosen?.lacks && html`<p class="note"><${Icon} name="warn" />${t("caption.lacks", { name: chosen.lacks })}</p>`}
      <${Field} label=${t("caption.purpose")} hint=${t(`purpose.${purpose}.hint`)}>${(id, hint) => html`<select id=${id} aria-describedby=${hint} value=${purpose}
        onChange=${(event) => setPurpose(event.target.value)}>${PURPOSES.map((one) => html`<option value=${one}>${t(`purpose.${one}`)}</option>`)}</select>`}<//>
      <div class="pair">
        <${Field} label=${t("train.trigger")} hint=${t("caption.triggerHint")}>${(id, hint) => html`<input id=${id} aria-describedby=${hint} value=${trigger} spellcheck=${false}
          onInput=${(event) => setTrigger(event.target.value)} />`}<//>
        <${Field} label=${t("caption.subject")} hint=${t("caption.subjectHint")}>${(id, hint) => html`<input id=${id} aria-describedby=${hint} value=${subject} spellcheck=${false}
          onInput=${(event) => setSubject(event.target.value)} />`}<//></div>
      <label class="check"><input type="checkbox" checked=${again} onChange=${(event) => setAgain(event.target.checked)} />${t("caption.again")}</label>`}
    <${Problem} error=${error} onClose=${() => setError(null)} />
    <div class="actions"><${Action} kind="primary" icon="wand" disabled=${!chosen || Boolean(chosen.lacks)} onError=${setError} run=${start}
      label=${chosen && !chosen.here ? t("caption.downloadAndWrite", { size: chosen.gigabytes }) : t("caption.write")} /></div>
  </dialog>`;
}

// How far the writing is, and how it ended; nothing when nothing was asked for.
export function CaptionProgress({ folder }) {
  const state = useStore((s) => s.captioning);
  const [problem, setProblem] = useState(null);
  const [closed, setClosed] = useState(null);
  useEffect(() => {
    get("gallery/captioning").then(takeCaptioning, () => {});
  }, []);
  if (!state || state.status === "idle" || state.folder !== folder || closed === state) return html`<${Problem} error=${problem} onClose=${() => setProblem(null)} />`;
  const values = { n: state.written, left: state.left, model: state.model, done: number(state.done), total: number(state.total) };
  const share = state.total ? Math.min(100, (100 * state.done) / state.total) : 0;
  const words = state.status === "failed" ? said(state.message) : t(`captioning.${state.status}`, values);
  return html`<div class=${`sending captioning ${state.status}`} role="status">
    ${state.works && html`<div class=${`progress running ${state.total ? "" : "unknown"}`}><div style=${{ width: state.total ? `${share}%` : undefined }}></div></div>`}
    <span>${state.status === "failed" && html`<${Icon} name="warn" />`}${words}</span>
    ${state.details && html`<details><summary>${t("details")}</summary><pre>${state.details}</pre></details>`}
    ${state.works ? html`<${Action} icon="stop" label=${t("caption.stop")} onError=${setProblem} run=${() => post("gallery/caption/stop")} />`
      : html`<button type="button" class="icon-button" aria-label=${t("close")} onClick=${() => setClosed(state)}><${Icon} name="x" /></button>`}
    <${Problem} error=${problem} onClose=${() => setProblem(null)} /></div>`;
}

// Takes all captions out again that a model has written and nobody has changed since.
export function UndoCaptions({ gallery, onError }) {
  const automatic = gallery.pictures.filter((one) => one.automatic && one.caption);
  const busy = useStore((s) => Boolean(s.captioning?.works));
  if (!automatic.length || busy) return null;
  const undo = async () => {
    await sendCaptions();
    const { files } = await post("gallery/caption/undo", { folder: gallery.folder });
    galleryChanged({ folder: gallery.folder, captions: Object.fromEntries(files.map((file) => [file, { caption: "", caption_from: "", automatic: false }])) });
  };
  return html`<${Action} icon="undo" label=${t("caption.undo", { n: automatic.length })} title=${t("caption.undoHint")} onError=${onError} run=${undo} />`;
}
