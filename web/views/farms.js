// Farms of `python train.py farm` that work below this server's folder: all their jobs in one table each.
import { useEffect, useState } from "../vendor/hooks.mjs";
import { html } from "../store.js";
import { get } from "../api.js";
import { said, t, when } from "../i18n.js";
import { Badge, Icon, Progress, progressText } from "./parts.js";

const OFTEN = 2000;
const SELDOM = 20000;

export function Farms() {
  const [farms, setFarms] = useState([]);
  useEffect(() => {
    let timer = 0;
    let gone = false;
    const look = async () => {
      let next = SELDOM;
      try {
        const found = (await get("farms")).farms;
        if (!gone) setFarms(found);
        if (found.some((one) => one.going)) next = OFTEN;
      } catch { /* the events tell of a server that is away */ }
      if (!gone) timer = setTimeout(look, next);
    };
    look();
    return () => {
      gone = true;
      clearTimeout(timer);
    };
  }, []);
  return farms.map((farm) => html`<${Farm} key=${farm.folder} farm=${farm} />`);
}

function Farm({ farm }) {
  const done = farm.jobs.filter((job) => job.status === "completed").length;
  return html`<section class="card" aria-label=${t("farm.title", { name: farm.name })}><h1>${t("farm.title", { name: farm.name })}</h1>
    <p class="hint">${t("farm.done", { done, all: farm.jobs.length })} · ${when(farm.updated)}${farm.going || farm.finished ? "" : ` · ${t("farm.away")}`}</p>
    <div class="farm-jobs"><table><thead><tr><th>${t("farm.job")}</th><th>${t("farm.state")}</th><th>${t("farm.progress")}</th><th>${t("farm.where")}</th></tr></thead>
      <tbody>${farm.jobs.map((job) => html`<${Row} key=${job.name} job=${job} />`)}</tbody></table></div></section>`;
}

function Row({ job }) {
  return html`<tr><th scope="row">${job.name}</th><td><${Badge} status=${job.status} /></td>
    <td>${["preparing", "running"].includes(job.status) && html`<${Progress} job=${job} />`}
      ${job.total_steps > 0 && html`<span class="hint">${progressText(job)}</span>`}
      ${job.status === "failed" && html`<p class="warning"><${Icon} name="warn" />${said(job.message)}</p>`}</td>
    <td>${job.node}${job.device && ` (${job.device})`}${job.attempts > 1 && html` <span class="hint">${t("farm.tries", { n: job.attempts })}</span>`}</td></tr>`;
}
