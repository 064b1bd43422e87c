// The queue and the history: reorder, cancel, go on, train again, compare two curves, remove and undo.
import { useState } from "../vendor/hooks.mjs";
import { html, setState, toast, useStore } from "../store.js";
import { fromServer, jobPath, post } from "../api.js";
import { formFrom } from "../form.js";
import { number, said, t, when } from "../i18n.js";
import { ACTIVE, loadJob, loraOf, takeJob } from "../live.js";
import { Exported, exportJob, ImportResult } from "./bundle.js";
import { Farms } from "./farms.js";
import { Action, Badge, Empty, Icon, Problem, Progress, progressText } from "./parts.js";
import { LossChart } from "./loss.js";
import { command, TryButton } from "./run.js";

export function RunsScreen() {
  const jobs = useStore((s) => s.jobs);
  const queue = useStore((s) => s.queue);
  const waiting = useStore((s) => s.waiting);
  const [compared, setCompared] = useState([]);
  const [error, setError] = useState(null);
  const [exported, setExported] = useState(null);
  if (jobs === null) return html`<div class="card empty quiet" aria-busy="true"></div>`;
  const byId = new Map(jobs.map((job) => [job.id, job]));
  const queued = queue.map((id) => byId.get(id)).filter(Boolean);
  const active = jobs.filter((job) => ACTIVE.includes(job.status));
  const past = jobs.filter((job) => !ACTIVE.includes(job.status) && !queue.includes(job.id));
  const shown = compared.filter((id) => byId.has(id));   // one that was removed comes back with Undo
  const pick = (id) => setCompared(shown.includes(id) ? shown.filter((one) => one !== id) : [...shown.slice(-1), id]);
  const send = async (id) => setExported(await exportJob(jobPath(id, "/bundle")));
  return html`<${Problem} error=${error} onClose=${() => setError(null)} />
    <${Exported} told=${exported} onClose=${() => setExported(null)} />
    ${!jobs.length && html`<section class="card"><${Empty} icon="layers" title=${t("runs.none")}><p><a class="button primary" href="#/train">${t("nav.train")}</a></p><//></section>`}
    ${waiting && queued.length > 0 && html`<p class="note card"><${Icon} name="pause" />${t("runs.waiting", { n: queued.length })}
      <${Action} kind="primary" icon="play" label=${t("runs.goOn")} onError=${setError} run=${() => command(queued[0].id, "resume")} /></p>`}
    ${(active.length > 0 || queued.length > 0) && html`<section class="card" aria-labelledby="hl-queue"><h1 id="hl-queue">${t("runs.queue")}</h1>
      <ol class="job-list">${active.map((job) => html`<${Row} key=${job.id} job=${job} onError=${setError} />`)}
        ${queued.map((job, i) => html`<${Row} key=${job.id} job=${job} onError=${setError}
          before=${i > 0 ? queued[i - 1].id : undefined} after=${i < queued.length - 1 ? queued[i + 2]?.id ?? null : undefined} />`)}</ol></section>`}
    ${shown.length > 0 && html`<section class="card" aria-label=${t("runs.compare")}>
      ${shown.length === 1 && html`<p class="hint">${t("runs.pickSecond")}</p>`}
      <${LossChart} key=${shown.join()} height=${260} runs=${shown.map((id) => ({ id, name: runName(byId.get(id)) }))} /></section>`}
    ${past.length > 0 && html`<section class="card" aria-labelledby="hl-history"><h1 id="hl-history">${t("runs.history")}</h1>
      <ul class="job-list">${past.map((job) => html`<${Row} key=${job.id} job=${job} onError=${setError} compared=${compared.includes(job.id)} onCompare=${pick} onExport=${send} />`)}</ul></section>`}
    <${Farms} />
    <${ImportResult} onError=${setError} />`;
}

const runName = (job) => `${job.name} (${when(job.created)})`;

function Row({ job, onError, before, after, compared, onCompare, onExport }) {
  const can = new Set(job.commands ?? []);
  const move = (place) => () => command(job.id, "move", { before: place });
  const lora = loraOf(job, useStore((s) => s.loras));
  return html`<li class="job-row">
    <${Thumbnail} job=${job} />
    <div class="job-text"><p><a href=${`#/run/${job.id}`}><strong>${job.name}</strong></a> <${Badge} status=${job.status} /></p>
      ${ACTIVE.includes(job.status) && html`<${Progress} job=${job} />`}
      <p class="hint">${job.status === "queued" ? t("runs.queuedFor", { n: job.pictures, steps: number(job.total_steps) }) : progressText(job)} · ${when(job.created)}</p>
      ${["failed", "interrupted"].includes(job.status) && html`<p class="hint">${said(job.message)}</p>`}
      ${lora.replaced && html`<p class="hint">${t("run.replaced", { name: lora.name })}</p>`}</div>
    <div class="actions small">
      ${before !== undefined && html`<${Action} compact icon="up" label=${t("runs.up", { name: job.name })} run=${move(before)} onError=${onError} />`}
      ${after !== undefined && html`<${Action} compact icon="down" label=${t("runs.down", { name: job.name })} run=${move(after)} onError=${onError} />`}
      ${can.has("cancel") && html`<${Action} icon="x" label=${t("run.cancel")} run=${() => command(job.id, "cancel")} onError=${onError} />`}
      ${lora.name && !lora.replaced && html`<${TryButton} name=${lora.name} trigger=${job.trigger} onError=${onError} />`}
      ${can.has("resume") && job.status !== "queued" && html`<${Action} icon="play" label=${t("run.resume")} run=${() => command(job.id, "resume")} onError=${onError} />`}
      ${can.has("again") && !ACTIVE.includes(job.status) && job.status !== "queued" && html`<${Action} icon="again" label=${t("run.again")} run=${() => command(job.id, "again")} onError=${onError} once />`}
      ${onCompare && job.step > 1 && html`<button type="button" class="button" aria-pressed=${compared} onClick=${() => onCompare(job.id)}>${t("runs.curve")}</button>`}
      ${job.status !== "queued" && !ACTIVE.includes(job.status) && html`<${UseSettings} job=${job} onError=${onError} />`}
      ${onExport && html`<${Action} compact icon="save" label=${t("bundle.exportOf", { name: job.name })} run=${() => onExport(job.id)} onError=${onError} />`}
      ${can.has("remove") && html`<${Action} compact icon="trash" label=${t("runs.remove", { name: job.name })} run=${() => removeJob(job, onError)} onError=${onError} />`}
    </div></li>`;
}

function Thumbnail({ job }) {
  const preview = useStore((s) => loraOf(job, s.loras).one?.preview);
  return html`<a class="job-picture" href=${`#/run/${job.id}`} tabindex="-1" aria-hidden="true">${preview ? html`<img src=${fromServer(preview)} alt="" loading="lazy" />` : html`<${Icon} name="image" />`}</a>`;
}

function UseSettings({ job, onError }) {
  const use = async () => {
    const whole = await loadJob(job.id);
    const back = await formFrom(whole.settings, whole.preset);
    location.hash = "#/train";
    toast(t("runs.settingsUsed", { name: job.name }), { label: t("undo"), run: back });
  };
  return html`<${Action} label=${t("runs.settings")} run=${use} onError=${onError} />`;
}

async function removeJob(job, onError) {
  await post(jobPath(job.id, "/remove"));
  setState((s) => ({ jobs: s.jobs.filter((one) => one.id !== job.id) }));
  const back = async () => {
    try {
      const restored = await post(jobPath(job.id, "/restore"));
      takeJob(restored);
      setState((s) => ({ jobs: [...s.jobs].sort((a, b) => b.created - a.created) }));
    } catch (error) {
      onError(error);
    }
  };
  toast(t("runs.removed", { name: job.name }), { label: t("undo"), run: back });
}
