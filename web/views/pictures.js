// The pictures to learn from: a folder of the server, or files that are dropped, chosen or pasted and uploaded into a new gallery.
import { useEffect, useRef, useState } from "../vendor/hooks.mjs";
import { getState, html, useStore } from "../store.js";
import { get, pictureUrl, post } from "../api.js";
import { changeForm, getForm, useForm } from "../form.js";
import { number, said, t } from "../i18n.js";
import { refreshGalleries } from "../live.js";
import { loadGallery } from "../gallery_data.js";
import { filesOfDrop, folderOf, sendFiles, sortFiles } from "../uploads.js";
import { Field, Icon, Problem, useSettled } from "./parts.js";

const SHOWN = 12;

export function Pictures({ error }) {
  const form = useForm();
  const galleries = useStore((s) => s.galleries);
  const gallery = useGallery(form.folder);
  const [sending, setSending] = useState(null);
  const [problem, setProblem] = useState(null);
  const take = async (files) => {
    setProblem(null);
    try {
      const folder = await galleryForFiles(form.folder, files);
      const result = await sendFiles(folder, files, (done, total) => setSending({ done, total }));
      changeForm({ folder });
      loadGallery(folder);
      await refreshGalleries();
      if (result.failed.length) setProblem(failedText(result.failed));
    } catch (wrong) {
      setProblem(wrong);
    } finally {
      setSending(null);
    }
  };
  return html`<${DropZone} onFiles=${take} onProblem=${setProblem}>
    <${Field} label=${t("train.folder")} error=${error}>
      ${(id, hint) => html`<div class="with-button">
        <input id=${id} aria-describedby=${hint} list="hl-folders" value=${form.folder} autocomplete="off" spellcheck=${false}
          placeholder=${t("train.folderExample")} onInput=${(event) => changeForm({ folder: event.target.value })} />
        <${FileButton} onFiles=${take} />
        <datalist id="hl-folders">${galleries.map((one) => html`<option value=${one.folder}>${one.name}</option>`)}</datalist>
      </div>`}
    <//>
    ${sending && html`<div class="sending" role="status"><div class="progress running"><div style=${{ width: `${(100 * sending.done) / sending.total}%` }}></div></div>
      ${t("upload.going", { done: number(sending.done), total: number(sending.total) })}</div>`}
    <${Problem} error=${problem} onClose=${() => setProblem(null)} />
    ${!form.folder.trim() && !sending && html`<${Welcome} galleries=${galleries} />`}
    ${gallery && form.folder.trim() && html`<${Strip} gallery=${gallery} />`}
  <//>`;
}

export const failedText = (failed) => t("upload.failed", {
  n: failed.length, names: failed.slice(0, 3).map((one) => one.name).join(", "), why: said(failed[0].error.message) });

function Welcome({ galleries }) {
  return html`<div class="dropbox"><${Icon} name="images" /><p>${t("upload.drop")}</p><p class="hint">${t("upload.hint")}</p></div>
    ${galleries.length > 0 && html`<div class="recent"><span class="hint">${t("train.recent")}</span>
      ${galleries.slice(0, 4).map((one) => html`<button type="button" class="chip" title=${one.folder} onClick=${() => changeForm({ folder: one.folder })}>
        <${Icon} name="folder" />${one.name}${one.pictures != null ? html` <small>${number(one.pictures)}</small>` : ""}</button>`)}</div>`}`;
}

function Strip({ gallery }) {
  const { pictures, skipped = [] } = gallery;
  if (!pictures.length) return null;
  return html`<div class="strip-box">
    <a class="strip" href="#/gallery" aria-label=${t("train.openGallery")}>
      ${pictures.slice(0, SHOWN).map((one) => html`<img key=${one.file} src=${pictureUrl(gallery.folder, one.file, 128, one.modified)} alt="" loading="lazy" width="64" height="64" />`)}
      ${pictures.length > SHOWN && html`<span class="more">+${number(pictures.length - SHOWN)}</span>`}
    </a>
    <p class="hint">${t("train.found", { n: pictures.length, shown: number(pictures.length), captions: number(pictures.filter((one) => one.caption).length) })}
      ${" "}<a href="#/gallery">${t("train.openGallery")}</a></p>
    ${skipped.length > 0 && html`<details class="skipped"><summary>${t("train.skipped", { n: skipped.length })}</summary>
      <ul>${skipped.map((one) => html`<li><b>${one.file}</b> ${said(one.reason)}</li>`)}</ul></details>`}
  </div>`;
}

// The gallery of a folder, a moment after it was typed; null while it is not known or cannot be read.
export function useGallery(folder, resolution) {
  const asked = useSettled(folder.trim());
  const connected = useStore((s) => s.connection === "open");
  const gallery = useStore((s) => s.gallery);
  useEffect(() => {
    const now = getState().gallery;
    if (connected && !(now && now.folder === asked && now.resolution === resolution)) loadGallery(asked, resolution);
  }, [asked, resolution, connected]);
  return gallery && gallery.folder === folder.trim() ? gallery : null;
}

// Files go into the gallery that is chosen, or into a new one where none is; a folder of the user's own is left alone.
export async function galleryForFiles(folder, files) {
  const { galleries } = await get("galleries");
  if (galleries.some((one) => one.own && one.folder === folder.trim())) return folder.trim();
  const wanted = getForm().name.trim() || folderOf(files) || t("upload.galleryName", { date: new Date().toISOString().slice(0, 10) });
  for (let n = 1; ; n++) {
    try {
      return (await post("galleries", { name: n === 1 ? wanted : `${wanted} ${n}` })).folder;
    } catch (error) {
      if (error.status !== 409 || n > 99) throw error;
    }
  }
}

// Everything in it takes files: dropped ones, also whole folders, and pasted ones.
export function DropZone({ onFiles, onProblem, children }) {
  const [over, setOver] = useState(0);
  const take = useRef(null);
  take.current = async (files) => {
    const sorted = sortFiles(files);
    if (sorted.length) await onFiles(sorted);
    else if (files.length) onProblem(t("upload.noPictures"));
  };
  useEffect(() => {
    const pasted = (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (!files.length) return;
      event.preventDefault();
      take.current(files);
    };
    document.addEventListener("paste", pasted);
    return () => document.removeEventListener("paste", pasted);
  }, []);
  const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  return html`<div class=${`dropzone ${over ? "over" : ""}`}
    onDragEnter=${(event) => { if (holdsFiles(event)) { event.preventDefault(); setOver((n) => n + 1); } }}
    onDragLeave=${(event) => { if (holdsFiles(event)) setOver((n) => Math.max(0, n - 1)); }}
    onDragOver=${(event) => { if (holdsFiles(event)) event.preventDefault(); }}
    onDrop=${async (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      setOver(0);
      take.current(await filesOfDrop(event.dataTransfer));
    }}>${children}${over > 0 && html`<div class="drop-hint"><${Icon} name="images" />${t("upload.dropHere")}</div>`}</div>`;
}

export function FileButton({ onFiles, label }) {
  const input = useRef(null);
  const chosen = async (event) => {
    const files = sortFiles([...event.target.files]);
    event.target.value = "";
    if (files.length) await onFiles(files);
  };
  return html`<button type="button" class="button" onClick=${() => input.current.click()}><${Icon} name="plus" /><span>${label ?? t("upload.choose")}</span></button>
    <input ref=${input} type="file" class="hidden" multiple tabindex="-1" aria-label=${label ?? t("upload.choose")} accept="image/*,.txt,.caption,.csv,.jsonl" onChange=${chosen} />`;
}
