// Preview pictures of a run: a row for each step, newest first, a column for each prompt.
import { html } from "../store.js";
import { previewUrl } from "../api.js";
import { number, t } from "../i18n.js";
import { PictureGrid } from "./picture_grid.js";

export function Previews({ job }) {
  const previews = job.previews ?? [];
  if (!previews.length) return null;
  const steps = [...new Set(previews.map((one) => one.step))].sort((a, b) => b - a);
  const prompts = [...new Set(previews.map((one) => one.prompt))];
  const files = new Map(previews.map((one) => [`${one.step}\n${one.prompt}`, one.file]));
  const at = (step, prompt) => files.has(`${step}\n${prompt}`) && previewUrl(job.id, files.get(`${step}\n${prompt}`));
  return html`<section class="previews" aria-label=${t("preview.title")}><h3>${t("preview.title")}</h3>
    <${PictureGrid} title=${t("preview.title")} at=${at} rows=${steps.map((step) => ({ key: step, label: t("preview.step", { step: number(step) }) }))}
      columns=${prompts.map((prompt) => ({ key: prompt, label: prompt || t("preview.empty") }))}
      words=${{ up: t("preview.later"), down: t("preview.earlier"), left: t("preview.before"), right: t("preview.next") }} /></section>`;
}
