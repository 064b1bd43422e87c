// Tools for all captions that are shown, or for the selected ones: search, replace, add and remove a tag, and how often each tag is there.
import { useState } from "../vendor/hooks.mjs";
import { getState, html, toast } from "../store.js";
import { get } from "../api.js";
import { addTag, removeTag, replaceIn, tagsOf, typed } from "../captions.js";
import { number, said, t } from "../i18n.js";
import { Icon } from "./parts.js";
import { captionOf } from "./gallery.js";

const TAGS_SHOWN = 60;

export function GalleryTools({ gallery, pictures, chosen, search, onSearch }) {
  const [find, setFind] = useState("");
  const [replacement, setReplacement] = useState("");
  const [tag, setTag] = useState("");
  const change = (how) => {
    const before = {};
    const after = {};
    for (const one of pictures) {
      const old = captionOf(gallery.folder, one);
      const next = how(old);
      if (next !== old) {
        before[one.file] = old;
        after[one.file] = next;
      }
    }
    const n = Object.keys(after).length;
    if (!n) {
      toast(t("tools.nothing"));
      return;
    }
    typed(gallery.folder, after);
    toast(t("tools.changed", { n }), { label: t("undo"), run: () => takeBack(gallery.folder, before, after).catch((error) => toast(said(error.message))) });
  };
  const counts = countTags(gallery, pictures);
  const where = chosen ? t("tools.inSelected", { n: chosen }) : t("tools.inShown", { n: pictures.length });
  return html`<div class="tools">
    <label class="search"><${Icon} name="search" /><span class="hidden">${t("gallery.search")}</span>
      <input type="search" placeholder=${t("gallery.search")} value=${search} onInput=${(event) => onSearch(event.target.value)} /></label>
    <details class="tool-box"><summary>${t("tools.title")}</summary>
      <p class="hint">${where}</p>
      <form class="tool-row" onSubmit=${(event) => { event.preventDefault(); change((old) => replaceIn(old, find, replacement)); }}>
        <label>${t("tools.find")}<input value=${find} spellcheck=${false} onInput=${(event) => setFind(event.target.value)} /></label>
        <label>${t("tools.replacement")}<input value=${replacement} spellcheck=${false} onInput=${(event) => setReplacement(event.target.value)} /></label>
        <button class="button" disabled=${!find}>${t("tools.replace")}</button></form>
      <form class="tool-row" onSubmit=${(event) => { event.preventDefault(); change((old) => addTag(old, tag, true)); }}>
        <label>${t("tools.tag")}<input value=${tag} spellcheck=${false} onInput=${(event) => setTag(event.target.value)} /></label>
        <button class="button" disabled=${!tag.trim()}>${t("tools.addFirst")}</button>
        <button type="button" class="button" disabled=${!tag.trim()} onClick=${() => change((old) => addTag(old, tag, false))}>${t("tools.addLast")}</button>
        <button type="button" class="button" disabled=${!tag.trim()} onClick=${() => change((old) => removeTag(old, tag))}>${t("tools.remove")}</button></form>
    </details>
    <details class="tool-box"><summary>${t("tools.tags", { n: counts.length })}</summary>
      <div class="tag-list">${counts.slice(0, TAGS_SHOWN).map(([name, n]) => html`<button type="button" key=${name} class="chip"
        aria-pressed=${search === `tag:${name}`} onClick=${() => { onSearch(search === `tag:${name}` ? "" : `tag:${name}`); setTag(name); }}>${name} <small>${number(n)}</small></button>`)}
        ${counts.length > TAGS_SHOWN && html`<span class="hint">${t("tools.moreTags", { n: counts.length - TAGS_SHOWN })}</span>`}</div>
    </details>
  </div>`;
}

// Only what is still as the change made it: a caption that was typed since, here or elsewhere, stays.
async function takeBack(folder, before, after) {
  const { gallery } = getState();
  const { pictures } = gallery?.folder === folder ? gallery : await get("gallery", { folder, quick: true });
  const same = pictures.filter((one) => one.file in after && captionOf(folder, one).trim() === after[one.file].trim());
  if (same.length) typed(folder, Object.fromEntries(same.map(({ file }) => [file, before[file]])));
  const kept = pictures.filter((one) => one.file in after).length - same.length;
  if (kept) toast(t("tools.kept", { n: kept }));
}

function countTags(gallery, pictures) {
  const counts = new Map();
  for (const one of pictures) for (const tag of new Set(tagsOf(captionOf(gallery.folder, one)))) counts.set(tag, (counts.get(tag) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
}
