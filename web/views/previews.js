// Preview pictures of a run: a row for each step, newest first, a column for each prompt; and the viewer that opens on one.
import { useEffect, useRef, useState } from "../vendor/hooks.mjs";
import { html } from "../store.js";
import { previewUrl } from "../api.js";
import { number, t } from "../i18n.js";
import { Icon } from "./parts.js";

// {steps: ascending, prompts: in order of appearance, at(step, prompt): entry or undefined}
export function gridOf(previews) {
  const steps = [...new Set(previews.map((one) => one.step))].sort((a, b) => a - b);
  const prompts = [...new Set(previews.map((one) => one.prompt))];
  const cells = new Map(previews.map((one) => [`${one.step}\n${one.prompt}`, one]));
  return { steps, prompts, at: (step, prompt) => cells.get(`${step}\n${prompt}`) };
}

export function Previews({ job }) {
  const [open, setOpen] = useState(null);
  const previews = job.previews ?? [];
  if (!previews.length) return null;
  const grid = gridOf(previews);
  return html`<section class="previews" aria-label=${t("preview.title")}>
    <h3>${t("preview.title")}</h3>
    <div class="preview-scroll" tabindex="0" role="group" aria-label=${t("preview.title")}>
      <table class="preview-grid"><thead><tr><th scope="col"><span class="hidden">${t("loss.step")}</span></th>
        ${grid.prompts.map((prompt) => html`<th scope="col" title=${prompt}>${prompt || t("preview.empty")}</th>`)}</tr></thead>
      <tbody>${[...grid.steps].reverse().map((step) => html`<tr key=${step}><th scope="row">${number(step)}</th>
        ${grid.prompts.map((prompt) => {
          const one = grid.at(step, prompt);
          return html`<td>${one && html`<button type="button" class="picture-button" aria-label=${t("preview.open", { step: number(step), prompt })}
            onClick=${() => setOpen({ step, prompt })}><img src=${previewUrl(job.id, one.file)} alt="" loading="lazy" /></button>`}</td>`;
        })}</tr>`)}</tbody></table>
    </div>
    ${open && html`<${Viewer} job=${job} grid=${grid} at=${open} onMove=${setOpen} onClose=${() => setOpen(null)} />`}
  </section>`;
}

function Viewer({ job, grid, at, onMove, onClose }) {
  const dialog = useRef(null);
  const [other, setOther] = useState(null);
  useEffect(() => {
    dialog.current.showModal();
    dialog.current.querySelector(".stage").focus();   // and not a list whose arrow keys would choose something
  }, []);
  const row = grid.steps.indexOf(at.step);
  const column = grid.prompts.indexOf(at.prompt);
  const move = (down, across) => {
    const step = grid.steps[Math.min(grid.steps.length - 1, Math.max(0, row + down))];
    const prompt = grid.prompts[Math.min(grid.prompts.length - 1, Math.max(0, column + across))];
    if (grid.at(step, prompt)) onMove({ step, prompt });
  };
  const key = (event) => {
    if (event.target.matches("input, select")) return;
    const way = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!way) return;
    event.preventDefault();
    move(...way);
  };
  const one = grid.at(at.step, at.prompt);
  const compared = other !== null ? grid.at(other, at.prompt) : null;
  return html`<dialog class="viewer" ref=${dialog} aria-label=${t("preview.title")} onClose=${onClose} onKeyDown=${key}
    onClick=${(event) => { if (event.target === dialog.current) dialog.current.close(); }}>
    <div class="viewer-body">
      <header><p><strong>${t("preview.step", { step: number(at.step) })}</strong> <span>${at.prompt}</span></p>
        <label class="compare-with">${t("preview.compare")}
          <select value=${other ?? ""} onChange=${(event) => setOther(event.target.value === "" ? null : Number(event.target.value))}>
            <option value="">${t("preview.none")}</option>
            ${grid.steps.filter((step) => step !== at.step).map((step) => html`<option value=${step}>${t("preview.step", { step: number(step) })}</option>`)}
          </select></label>
        <button type="button" class="icon-button" aria-label=${t("close")} onClick=${() => dialog.current.close()}><${Icon} name="x" /></button></header>
      <div class="stage" tabindex="-1">
        ${compared ? html`<${Compare} left=${previewUrl(job.id, compared.file)} right=${previewUrl(job.id, one.file)}
            leftLabel=${t("preview.step", { step: number(other) })} rightLabel=${t("preview.step", { step: number(at.step) })} />`
          : html`<img src=${previewUrl(job.id, one.file)} alt=${t("preview.open", { step: number(at.step), prompt: at.prompt })} />`}
      </div>
      <footer>
        <button type="button" class="button" disabled=${row === 0} onClick=${() => move(-1, 0)}><${Icon} name="down" />${t("preview.earlier")}</button>
        <button type="button" class="button" disabled=${row === grid.steps.length - 1} onClick=${() => move(1, 0)}><${Icon} name="up" />${t("preview.later")}</button>
        ${grid.prompts.length > 1 && html`<button type="button" class="button" disabled=${column === 0} onClick=${() => move(0, -1)}><${Icon} name="left" />${t("preview.before")}</button>
        <button type="button" class="button" disabled=${column === grid.prompts.length - 1} onClick=${() => move(0, 1)}>${t("preview.next")}<${Icon} name="right" /></button>`}
        <span class="hint">${t("preview.keys")}</span>
      </footer>
    </div></dialog>`;
}

// Two pictures on top of each other with a divider that is moved by the mouse, a finger or the arrow keys.
export function Compare({ left, right, leftLabel, rightLabel }) {
  const [share, setShare] = useState(50);
  return html`<div class="compare" style=${{ "--share": `${share}%` }}>
    <img src=${right} alt=${rightLabel} /><img class="over" src=${left} alt=${leftLabel} />
    <i class="divider"></i><span class="tag-left">${leftLabel}</span><span class="tag-right">${rightLabel}</span>
    <input type="range" min="0" max="100" step="0.5" value=${share} aria-label=${t("preview.slider")} onInput=${(event) => setShare(Number(event.target.value))} />
  </div>`;
}
