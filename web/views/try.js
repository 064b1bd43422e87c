// LoRAs that were trained here, with their saved steps: the tag with its trigger, at a weight, into the prompt of the host.
import { useState } from "../vendor/hooks.mjs";
import { html, toast, useStore } from "../store.js";
import { fromServer, post } from "../api.js";
import { number, t, when } from "../i18n.js";
import { promptOf } from "../host.js";
import { refreshLoras } from "../live.js";
import { Action, Empty, Icon, Problem } from "./parts.js";
import { TryButton } from "./run.js";

export function TryScreen() {
  const loras = useStore((s) => s.loras);
  const [error, setError] = useState(null);
  if (loras === null) return html`<div class="card empty quiet" aria-busy="true"></div>`;
  if (!loras.length) return html`<section class="card"><${Empty} icon="wand" title=${t("try.none")}><p><a class="button primary" href="#/train">${t("nav.train")}</a></p><//></section>`;
  return html`<section class="card" aria-labelledby="hl-try"><h1 id="hl-try">${t("try.title")}</h1>
    <p class="hint">${t("try.hint")}</p>
    <${Problem} error=${error} onClose=${() => setError(null)} />
    <div class="lora-grid">${loras.map((one) => html`<${LoraCard} key=${one.name} lora=${one} onError=${setError} />`)}</div></section>`;
}

function LoraCard({ lora, onError }) {
  const [weight, setWeight] = useState(0.8);
  const [which, setWhich] = useState("");
  const name = which || lora.tag.replace(/^<lora:(.*):1>$/, "$1");
  const bare = async () => {
    await post(`loras/${encodeURIComponent(lora.name)}/delete`);
    refreshLoras();
    const back = () => post(`loras/${encodeURIComponent(lora.name)}/restore`).then(refreshLoras, onError);
    toast(t("try.deleted", { name: lora.name }), { label: t("undo"), run: back });
  };
  return html`<article class="lora-card" aria-label=${lora.name}>
    <div class="lora-picture">${lora.preview ? html`<img src=${fromServer(lora.preview)} alt="" loading="lazy" />` : html`<${Icon} name="wand" />`}</div>
    <h2>${lora.name}</h2>
    <p class="hint">${[lora.base, lora.trained && t("try.trained", { steps: number(lora.trained) }), when(lora.created)].filter(Boolean).join(" · ")}</p>
    ${lora.steps.length > 0 && html`<label>${t("try.step")}<select value=${which} onChange=${(event) => setWhich(event.target.value)}>
      ${lora.finished && html`<option value="">${t("try.final")}</option>`}
      ${[...lora.steps].reverse().map((step) => html`<option value=${step.name}>${t("preview.step", { step: number(step.step) })}</option>`)}</select></label>`}
    <label>${t("try.weight")} <output>${weight}</output>
      <input type="range" min="0" max="1.5" step="0.05" value=${weight} onInput=${(event) => setWeight(Number(event.target.value))} /></label>
    <code class="prompt">${promptOf(name, lora.trigger, weight)}</code>
    <div class="actions"><${TryButton} name=${name} trigger=${lora.trigger} weight=${weight} primary onError=${onError} />
      <${Action} compact icon="trash" label=${t("try.delete", { name: lora.name })} run=${bare} onError=${onError} /></div>
  </article>`;
}
