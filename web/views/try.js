// Trying a LoRA: the same seed without it and with it, over weights and saved steps, drawn by the host; and its tag for a prompt.
import { useEffect, useRef, useState } from "../vendor/hooks.mjs";
import { html, setState, toast, useStore } from "../store.js";
import { fromServer, get, post } from "../api.js";
import { number, said, t, when } from "../i18n.js";
import { promptOf } from "../host.js";
import { refreshLoras, takeDrawing } from "../live.js";
import { keepTry, readTry } from "../try_form.js";
import { Action, Choice, Empty, Field, Icon, isForeign, Problem, showSecondColumn } from "./parts.js";
import { PictureGrid } from "./picture_grid.js";
import { TryButton } from "./run.js";

const WEIGHTS = [0, 0.4, 0.6, 0.8, 1, 1.2];
const ROWS = 8;

export function TryScreen() {
  const loras = useStore((s) => s.loras);
  const drawings = useStore((s) => s.drawings);
  useEffect(() => { get("drawings").then((found) => setState({ drawings: found.drawings }), () => {}); }, []);
  if (loras === null) return html`<div class="card empty quiet" aria-busy="true"></div>`;
  if (!loras.length) return html`<section class="card"><${Empty} icon="wand" title=${t("try.none")}><p><a class="button primary" href="#/train">${t("nav.train")}</a></p><//></section>`;
  return html`<div class="two-columns">
    <section class="card" aria-labelledby="hl-try"><h1 id="hl-try">${t("try.title")}</h1><${TryForm} loras=${loras} /></section>
    <section class="card" aria-labelledby="hl-drawings"><h1 id="hl-drawings">${t("try.drawings")}</h1>
      ${drawings?.length ? html`<div class="drawings">${drawings.map((one) => html`<${Drawn} key=${one.id} drawing=${one} loras=${loras} />`)}</div>`
        : html`<${Empty} icon="image" title=${t("try.nothing")}><p>${t("try.hint")}</p><//>`}</section></div>`;
}

function TryForm({ loras }) {
  const [form, setForm] = useState(readTry);
  const [error, setError] = useState(null);
  const [isAsked, setAsked] = useState(false);   // a number that is half typed is not wrong yet
  const numbers = useRef(null);
  const change = (patch) => {
    const next = { ...form, ...patch };
    setForm(next);
    keepTry(next);
  };
  const lora = loras.find((one) => one.name === form.lora) ?? loras[0];
  const name = lora.steps.find((step) => step.name === form.step)?.name ?? lora.tag.replace(/^<lora:(.*):1>$/, "$1");
  const prompt = form.prompt ?? (lora.trigger ? `a photo of ${lora.trigger}` : "a photo");
  const wrong = isAsked ? wrongNumbers(form) : {};
  const draw = async () => {
    setAsked(true);
    if (Object.keys(wrongNumbers(form)).length) {
      numbers.current.open = true;
      return;
    }
    takeDrawing(await post("drawings", {
      prompt, negative: form.negative, seed: Number(form.seed), steps: Number(form.steps), width: Number(form.width) || null, height: Number(form.height) || null,
      ...gridOf(form, lora, name) }));
    showSecondColumn();
  };
  const remove = async () => {
    const path = `loras/${lora.name.split("/").map(encodeURIComponent).join("/")}`;
    await post(`${path}/delete`);
    refreshLoras();
    const back = () => post(`${path}/restore`).then(refreshLoras, setError);
    toast(t("try.deleted", { name: lora.name }), { label: t("undo"), run: back });
  };
  return html`<form onSubmit=${(event) => event.preventDefault()}>
    <div class="pair">
      <${Field} label=${t("try.lora")} hint=${[lora.base, lora.trained && t("try.trained", { steps: number(lora.trained) }), when(lora.created)].filter(Boolean).join(" · ")}>
        ${(id) => html`<select id=${id} value=${lora.name} onChange=${(event) => change({ lora: event.target.value, step: "" })}>
          ${loras.map((one) => html`<option value=${one.name}>${one.name}</option>`)}</select>`}<//>
      <${Field} label=${t("try.step")}>${(id) => html`<select id=${id} value=${form.step} disabled=${form.how === "steps"} onChange=${(event) => change({ step: event.target.value })}>
          ${(lora.finished || !lora.steps.length) && html`<option value="">${t("try.final")}</option>`}
          ${[...lora.steps].reverse().map((step) => html`<option value=${step.name}>${t("preview.step", { step: number(step.step) })}</option>`)}</select>`}<//>
    </div>
    <${Field} label=${t("try.prompt")} hint=${promptHint(prompt, lora)}>${(id, hint) => html`<textarea
      id=${id} aria-describedby=${hint} rows="2" spellcheck=${false} value=${prompt} onInput=${(event) => change({ prompt: event.target.value })}></textarea>`}<//>
    <${Choice} legend=${t("try.what")} name="how" value=${form.how} options=${["pair", "weights", "steps"].map((one) => [one, t(`how.${one}`)])}
      hint=${t(`how.${form.how}.hint`)} onChange=${(how) => change({ how })} />
    ${form.how === "pair" && html`<${Field} label=${`${t("try.weight")} ${form.weight}`}>${(id) => html`<input id=${id} type="range" min="0.05" max="1.5" step="0.05" value=${form.weight}
      onInput=${(event) => change({ weight: Number(event.target.value) })} />`}<//>`}
    <details class="facts" ref=${numbers}><summary>${t("try.more")}</summary><div class="more">
      <${Field} label=${t("try.negative")}>${(id) => html`<input id=${id} value=${form.negative} onInput=${(event) => change({ negative: event.target.value })} />`}<//>
      <div class="pair">
        <${Field} label=${t("try.seed")} error=${wrong.seed}>${(id, hint) => html`<input id=${id} aria-describedby=${hint}
          inputmode="numeric" value=${form.seed} onInput=${(event) => change({ seed: event.target.value })} />`}<//>
        <${Field} label=${t("try.samplerSteps")} error=${wrong.steps}>${(id, hint) => html`<input id=${id} aria-describedby=${hint}
          inputmode="numeric" value=${form.steps} onInput=${(event) => change({ steps: event.target.value })} />`}<//>
      </div>
      <div class="pair">
        <${Field} label=${t("try.width")} error=${wrong.width}>${(id, hint) => html`<input id=${id} aria-describedby=${hint}
          inputmode="numeric" placeholder=${t("advanced.auto")} value=${form.width} onInput=${(event) => change({ width: event.target.value })} />`}<//>
        <${Field} label=${t("try.height")} error=${wrong.height}>${(id, hint) => html`<input id=${id} aria-describedby=${hint}
          inputmode="numeric" placeholder=${t("advanced.auto")} value=${form.height} onInput=${(event) => change({ height: event.target.value })} />`}<//>
      </div></div></details>
    <${Problem} error=${error} onClose=${() => setError(null)} />
    <div class="actions main-actions"><${Action} kind="primary large" icon="image" label=${t("try.draw")} run=${draw} onError=${setError} once /></div>
    <div class="told"><code>${promptOf(name, lora.trigger, form.weight)}</code>
      <div class="actions"><${TryButton} name=${name} trigger=${lora.trigger} weight=${form.weight} onError=${setError} />
        <${Action} compact icon="trash" label=${t("try.delete", { name: lora.name })} run=${remove} onError=${setError} /></div></div>
  </form>`;
}

function promptHint(prompt, { trigger }) {
  if (!prompt.includes(trigger)) return t("try.otherTrigger", { trigger });
  return isForeign(prompt) && t("try.foreign");
}

// What is wrong with each number that is typed, as the server's bounds have it.
function wrongNumbers(form) {
  const isWhole = (value, low, high) => /^\s*\d+\s*$/.test(value) && Number(value) >= low && Number(value) <= high;
  const wrong = {};
  for (const [name, low, high] of [["seed", 0, Number.MAX_SAFE_INTEGER], ["steps", 1, 150]]) {
    if (!isWhole(form[name], low, high)) wrong[name] = t("try.noWholeNumber", { value: form[name], low, high });
  }
  for (const name of ["width", "height"]) {
    if (form[name].trim() && !(isWhole(form[name], 64, 2048) && form[name] % 8 === 0)) wrong[name] = t("try.noSide", { value: form[name] });
  }
  return wrong;
}

// The rows and columns of what is to be drawn: one LoRA beside the base, over weights, or the saved steps too.
function gridOf({ how, weight }, lora, name) {
  if (how === "pair") return { names: [name], weights: [0, weight] };
  if (how === "weights") return { names: [name], weights: WEIGHTS };
  const saved = lora.steps.slice(-ROWS).map((step) => step.name);
  return { names: [...saved, ...(lora.finished ? [lora.name] : [])], weights: [0, 0.6, 0.8, 1] };
}

function Drawn({ drawing, loras }) {
  const [error, setError] = useState(null);
  const going = drawing.status === "queued" || drawing.status === "drawing";
  const files = new Map(drawing.pictures.map((one) => [one.weight === 0 ? "base" : `${one.name}\n${one.weight}`, one.file]));
  const at = (name, weight) => {
    const file = files.get(weight === 0 ? "base" : `${name}\n${weight}`);
    return file && fromServer(`drawings/${drawing.id}/${encodeURIComponent(file)}`);
  };
  const label = (name) => {
    const step = loras.flatMap((one) => one.steps).find((one) => one.name === name);
    return step && drawing.names.length > 1 ? t("preview.step", { step: number(step.step) }) : name;
  };
  return html`<article class="drawing" aria-label=${drawing.prompt}>
    <p class="drawing-head"><strong>${drawing.prompt}</strong> <span class="hint">${t("try.facts", { seed: drawing.seed, time: when(drawing.created) })}</span></p>
    ${going && html`<div class="drawing-going"><div class="progress running" role="progressbar" aria-label=${t("try.draw")} aria-valuemin="0" aria-valuemax=${drawing.total}
      aria-valuenow=${drawing.pictures.length}><div style=${{ width: `${(100 * drawing.pictures.length) / drawing.total}%` }}></div></div>
      <span class="hint">${drawing.pictures.length} / ${drawing.total}</span>
      <${Action} label=${t("run.cancel")} run=${async () => takeDrawing(await post(`drawings/${drawing.id}/cancel`))} onError=${setError} /></div>`}
    ${drawing.status === "failed" && html`<${Problem} error=${{ message: said(drawing.message), details: drawing.details }} />`}
    ${drawing.status === "cancelled" && drawing.message && html`<p class="note"><${Icon} name="warn" /><span>${said(drawing.message)}</span></p>`}
    <${Problem} error=${error} onClose=${() => setError(null)} />
    ${drawing.pictures.length > 0 && html`<${PictureGrid} title=${drawing.prompt} at=${at} rows=${drawing.names.map((name) => ({ key: name, label: label(name) }))}
      columns=${drawing.weights.map((weight) => ({ key: weight, label: weight === 0 ? t("try.without") : String(weight) }))}
      words=${{ up: t("grid.up"), down: t("grid.down"), left: t("grid.left"), right: t("grid.right") }} />`}
  </article>`;
}
