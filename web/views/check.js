// The check of the gallery: its score with its parts, and what was found, on which pictures, why it matters and what to do.
import { useState } from "../vendor/hooks.mjs";
import { html, toast } from "../store.js";
import { post } from "../api.js";
import { addTag, removeTag, sendCaptions, typed } from "../captions.js";
import { galleryChanged } from "../gallery_data.js";
import { language, number, said, t } from "../i18n.js";
import { Action, Icon, Problem } from "./parts.js";
import { captionOf } from "./gallery.js";

const FEW = 3;

export function CheckPanel({ gallery, check, compare, onCompare, onShow, onCaptions }) {
  const [problem, setProblem] = useState(null);
  const { report, works, error } = check;
  const tongue = language();
  return html`<section class="checks" aria-labelledby="hl-check-title" aria-busy=${works}>
    <header><h2 id="hl-check-title">${t("check.title")}</h2>
      ${report && html`<p class="score ${report.good ? "good" : "bad"}"><strong>${report.score}</strong> ${t("check.of")}</p>
        <p class="verdict">${report.sentence[tongue]}</p>`}
      ${works && html`<p class="hint" role="status">${t("check.going", { done: number(check.done), total: number(check.total) })}</p>`}
      ${check.waits && html`<button type="button" class="button" onClick=${check.start}><${Icon} name="search" />${t("check.start")}</button>`}</header>
    <${Problem} error=${error ?? problem} onClose=${problem && (() => setProblem(null))} />
    ${report && html`<ul class="parts" aria-label=${t("check.parts")}>${report.parts.map((part) => html`<li key=${part.code}>
        <span>${part.name[tongue]}</span><meter min="0" max=${part.of} value=${part.points} aria-label=${part.name[tongue]}></meter>
        <b>${Math.round(part.points)}/${part.of}</b></li>`)}</ul>
      ${check.can_compare && html`<label class="check"><input type="checkbox" checked=${compare} onChange=${(event) => onCompare(event.target.checked)} />${t("check.compare")}</label>`}
      <ul class="findings">${report.findings.map((finding) => html`<${Finding} key=${finding.code} finding=${finding} gallery=${gallery} tongue=${tongue}
        onShow=${onShow} onCaptions=${onCaptions} onError=${setProblem} />`)}</ul>`}
  </section>`;
}

function Finding({ finding, gallery, tongue, onShow, onCaptions, onError }) {
  const { files, action } = finding;
  const names = files.slice(0, FEW).join(t("comma")) + (files.length > FEW ? "…" : "");
  return html`<li class=${`finding ${finding.severity}`}>
    <span class="severity">${finding.severity_name[tongue]}</span>
    <div><p><strong>${finding.what[tongue]}</strong></p><p class="hint">${t("check.why", { why: finding.why[tongue], do: finding.do[tongue] })}</p></div>
    <div class="actions small">
      ${files.length > 0 && html`<button type="button" class="button" title=${names} onClick=${() => onShow(finding.what[tongue], files)}>
        <${Icon} name="images" />${t("check.show", { n: files.length })}</button>`}
      ${action && html`<${Action} label=${action.name[tongue]} title=${action.files.slice(0, FEW).join(", ")} onError=${onError}
        run=${() => RUN[action.kind](gallery, action, onCaptions)} />`}
    </div></li>`;
}

// What one click does; each can be undone, and no picture is ever deleted.
const RUN = {
  leave_out: (gallery, action) => leaveOut(gallery.folder, action.files),
  make_captions: (gallery, action, onCaptions) => onCaptions(action.files),
  add_trigger: async (gallery, action) => {
    const some = gallery.pictures.filter((one) => action.files.includes(one.file));
    const before = Object.fromEntries(some.map((one) => [one.file, captionOf(gallery.folder, one)]));
    // the trigger of an earlier run does not stay in what a machine wrote
    const bare = (one) => (one.automatic && one.trigger && before[one.file] === one.caption ? removeTag(one.caption, one.trigger) : before[one.file]);
    typed(gallery.folder, Object.fromEntries(some.map((one) => [one.file, addTag(bare(one), action.values.trigger, true)])));
    await sendCaptions();
    toast(t("tools.changed", { n: some.length }), { label: t("undo"), run: () => typed(gallery.folder, before) });
  },
};

export async function leaveOut(folder, files) {
  const { files: left } = await post("gallery/leave-out", { folder, files });
  galleryChanged({ folder, left_out: Object.fromEntries(left.map((file) => [file, true])) });
  toast(t("check.leftOut", { n: left.length }), { label: t("undo"), run: () => putBack(folder, left) });
}

export async function putBack(folder, files) {
  const { files: back } = await post("gallery/put-back", { folder, files });
  galleryChanged({ folder, left_out: Object.fromEntries(back.map((file) => [file, false])) });
}

// A picture that is left out says so, and comes back at a click.
export const LeftOut = ({ folder, one }) => html`<button type="button" class="left-out-mark" tabindex="-1" title=${t("check.putBackHint")}
  onClick=${() => putBack(folder, [one.file]).catch((error) => toast(said(error.message)))}>${t("check.out")} · ${t("check.putBack")}</button>`;
