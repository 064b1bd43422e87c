// One run: how far it is, its loss, its pictures, and what can be done with it.
import { useEffect, useRef, useState } from "../vendor/hooks.mjs";
import { html, toast, useStore } from "../store.js";
import { jobPath, post } from "../api.js";
import { duration, number, said, t, when } from "../i18n.js";
import { ACTIVE, currentJob, ENDED, loadJob, loadLog, loraOf, takeOwnJob } from "../live.js";
import { isComfy, isWebui, promptOf, tryIt } from "../host.js";
import { chooseLora } from "../try_form.js";
import { askToNotify, canAskToNotify } from "../notify.js";
import { Action, Badge, Empty, Icon, Problem, Progress, progressText } from "./parts.js";
import { LossChart } from "./loss.js";
import { Previews } from "./previews.js";

export function RunScreen({ rest }) {
  const current = useStore(currentJob);
  const known = useStore((s) => s.jobs !== null);
  const id = rest[0] ?? current;
  if (!known) return html`<div class="card empty quiet" aria-busy="true"></div>`;
  if (!id) return html`<section class="card"><${Empty} icon="flame" title=${t("run.none")}><p><a class="button primary" href="#/train">${t("nav.train")}</a></p><//></section>`;
  return html`<section class="card run-wide" aria-label=${t("nav.run")}><${RunPanel} id=${id} key=${id} wide /></section>`;
}

export async function command(id, name, body) {
  const job = await post(jobPath(id, `/${name}`), body);
  takeOwnJob(job);
  return job;
}

export function RunPanel({ id, wide }) {
  const job = useStore((s) => s.jobs?.find((one) => one.id === id));
  const whole = useStore((s) => s.details[id]);
  const waiting = useStore((s) => s.waiting && s.queue.includes(id));
  const [error, setError] = useState(null);
  useEffect(() => {
    if (!whole) loadJob(id).catch(setError);
  }, [id]);
  if (!job) return html`<${Problem} error=${error ?? t("run.gone")} />`;
  const both = { ...whole, ...job };
  return html`<div class="run">
    <header class="run-head"><h2>${job.name}</h2><${Badge} status=${job.status} />
      ${!wide && html`<a class="quiet-link" href=${`#/run/${id}`}>${t("run.open")}</a>`}</header>
    ${job.status !== "queued" && html`<${Progress} job=${job} />`}
    <p class="run-line">${line(job)}</p>
    ${job.memory && html`<p class="run-memory">${memoryOf(job.memory)}</p>`}
    <${Outcome} job=${both} waiting=${waiting} />
    <${Controls} job=${job} waiting=${waiting} onError=${setError} />
    <${Problem} error=${error} onClose=${() => setError(null)} />
    ${job.step > 0 && html`<${LossChart} runs=${[{ id, name: job.name, measured: job.measured ?? [] }]} height=${wide ? 260 : 190} />`}
    <${Previews} job=${both} />
    ${(job.warnings ?? []).map((one) => html`<p class="warning"><${Icon} name="warn" />${said(one)}</p>`)}
    <${Facts} job=${both} />
    <${Log} id=${id} />
  </div>`;
}

function line(job) {
  if (job.status === "queued") return t("run.queued");
  if (job.status === "preparing") return job.message ? said(job.message) : t("run.preparing");
  return progressText(job);
}

// What was said before the first step, and what has been given up since.
function memoryOf({ peak, more, free, verdict, given_up = [] }) {
  const shown = (bytes) => (bytes / 1e9).toFixed(1);
  const told = verdict ? t("run.memory", { peak: shown(peak), more: shown(more), free: shown(free), verdict }) : t("run.memoryAlone", { peak: shown(peak) });
  return given_up.length ? t("run.memoryLess", { told, list: given_up.map(said).join(t("comma")) }) : told;
}

function Outcome({ job, waiting }) {
  if (waiting) return html`<p class="note"><${Icon} name="pause" />${t("run.waiting")}</p>`;
  if (job.status === "failed") return html`<${Problem} error=${{ message: job.message, details: job.details }} />`;
  if (job.status === "preparing" || !job.message) return null;
  return html`<p class="note">${job.status === "completed" ? html`<${Icon} name="check" />` : ""}<span>${said(job.message)}</span></p>`;
}

function Controls({ job, waiting, onError }) {
  const can = new Set(job.commands ?? []);
  const run = (name) => () => command(job.id, name);
  const button = (name, icon, label, kind) => can.has(name) && html`<${Action} icon=${icon} label=${label} kind=${kind} run=${run(name)} onError=${onError} once=${name === "again"} />`;
  const { name, one, replaced } = loraOf(job, useStore((s) => s.loras));
  const lora = !replaced && name;
  const resume = can.has("resume") && (job.status !== "queued" || waiting);
  return html`<div class="actions">
    ${lora && ENDED.includes(job.status) && html`<a class="button primary" href="#/try" onClick=${() => chooseLora(one?.name ?? job.name)}><${Icon} name="image" /><span>${t("run.try")}</span></a>`}
    ${lora && html`<${TryButton} name=${lora} trigger=${job.trigger} onError=${onError} />`}
    ${button("pause", "pause", t("run.pause"))}
    ${resume && html`<${Action} icon="play" label=${t(job.status === "queued" ? "run.start" : "run.resume")} kind=${job.status === "stopped" ? "" : "primary"} run=${run("resume")} onError=${onError} />`}
    ${button("stop", "stop", t("run.stop"), "stop")}
    ${job.status !== "queued" && button("save", "save", t("run.save"))}
    ${job.status !== "queued" && button("sample", "image", t("run.sample"))}
    ${job.status === "queued" && button("cancel", "x", t("run.cancel"))}
    ${ENDED.includes(job.status) && button("again", "again", t("run.again"))}
    ${ACTIVE.includes(job.status) && html`<${NotifyButton} />`}
  </div>`;
}

export function TryButton({ name, trigger, onError, weight = 0.8 }) {
  const label = isWebui() ? t("try.send") : isComfy() ? t("try.node") : t("try.copy");
  const go = async () => {
    const done = await tryIt(name, trigger, weight);
    if (!done) throw new Error(t("try.byHand", { prompt: promptOf(name, trigger, weight) }));
    toast(t(`try.${done}`, { prompt: promptOf(name, trigger, weight) }));
  };
  return html`<${Action} icon=${isWebui() || isComfy() ? "wand" : "copy"} label=${label} run=${go} onError=${onError}
    title=${promptOf(name, trigger, weight)} />`;
}

function NotifyButton() {
  const [can, setCan] = useState(canAskToNotify);
  if (!can) return null;
  return html`<button type="button" class="button" onClick=${() => askToNotify().then(() => setCan(false))}><${Icon} name="bell" /><span>${t("run.notify")}</span></button>`;
}

function Facts({ job }) {
  const { name: lora, one, replaced } = loraOf(job, useStore((s) => s.loras));
  const saved = one && job.run && one.name !== job.name ? [...one.steps, { step: job.step, name: lora }] : job.saved;
  const rows = [
    lora && [t("fact.prompt"), replaced ? t("run.replaced", { name: lora }) : html`<code>${promptOf(lora, job.trigger)}</code>`],
    !replaced && saved?.length > 1 && [t("fact.saved"), html`<span class="saved">${saved.map((one) => html`<code title=${t("preview.step", { step: number(one.step) })}>${one.name}</code>`)}</span>`],
    job.base && [t("fact.base"), job.base],
    job.pictures > 0 && [t("fact.pictures"), number(job.pictures)],
    job.settings?.train_data_dir && [t("fact.folder"), job.settings.train_data_dir],
    job.started && [t("fact.started"), when(job.started) + (job.ended ? ` (${duration(job.ended - job.started)})` : "")],
  ].filter(Boolean);
  return html`<details class="facts"><summary>${t("fact.title")}</summary><dl>${rows.map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl></details>`;
}

function Log({ id }) {
  const lines = useStore((s) => s.logs[id]);
  const asked = useRef(false);
  const opened = (event) => {
    if (!event.currentTarget.open || asked.current) return;
    asked.current = true;
    loadLog(id).catch(() => { asked.current = false; });   // the next opening asks again
  };
  return html`<details class="log" onToggle=${opened}><summary>${t("run.log")}</summary>
    <pre tabindex="0">${lines?.length ? lines.map((one) => `${when(one.time)}  ${one.text}`).join("\n") : t("run.noLog")}</pre></details>`;
}
