// The pictures to learn from: a folder of the server, or files that are dropped, chosen or pasted and uploaded into a new gallery.
import { useEffect, useRef, useState } from "../vendor/hooks.mjs";
import { getState, html, setState, useStore } from "../store.js";
import { get, pictureUrl, post } from "../api.js";
import { changeForm, getForm, useForm } from "../form.js";
import { number, said, t } from "../i18n.js";
import { refreshGalleries } from "../live.js";
import { loadGallery, reloadGallery } from "../gallery_data.js";
import { filesOfDrop, folderOf, isText, sendFiles, sortFiles } from "../uploads.js";
import { Field, Icon, Problem, useSettled } from "./parts.js";

const SHOWN = 12;

export function Pictures({ error }) {
  const form = useForm();
  const galleries = useStore((s) => s.galleries);
  const gallery = useGallery(form.folder);
  const sending = useStore((s) => s.sending);
  return html`<${DropZone}>
    <${Field} label=${t("train.folder")} error=${error}>
      ${(id, hint) => html`<div class="with-button">
        <input id=${id} aria-describedby=${hint} list="hl-folders" value=${form.folder} title=${form.folder} autocomplete="off" spellcheck=${false}
          placeholder=${t("train.folderExample")} onInput=${(event) => changeForm({ folder: event.target.value })} />
        <${FileButton} />
        <datalist id="hl-folders">${galleries.map((one) => html`<option value=${one.folder}>${one.name}</option>`)}</datalist>
      </div>`}
    <//>
    <${Sending} />
    ${!form.folder.trim() && !sending && html`<${Welcome} galleries=${galleries} />`}
    ${gallery && form.folder.trim() && html`<${Strip} gallery=${gallery} />`}
  <//>`;
}

const NAMED = 8;

// What was not added, each file with its own reason; files that were turned down for the same one stand together.
function failedFiles(failed) {
  const groups = new Map();
  for (const one of failed) {
    const reason = one.error.message.replaceAll(one.name, "\0");
    groups.set(reason, [...(groups.get(reason) ?? []), one]);
  }
  const sentences = [...groups].map(([reason, some]) => t("upload.failed", {
    n: some.length, names: some.slice(0, NAMED).map((one) => one.name).join(t("comma")) + (some.length > NAMED ? "…" : ""),
    why: said(reason.replaceAll("\0", () => (some.length > 1 ? t("upload.each") : some[0].name))) }));
  const isLong = [...groups.values()].some((some) => some.length > NAMED);
  return { message: sentences.join("\n"), details: isLong && failed.map(({ name, error }) => `${name}: ${said(error.message)}`).join("\n") };
}

let goal = Promise.resolve();   // where files go is settled one after the other, and then at once: what is chosen later is for later files
let line = Promise.resolve();   // uploads come one after the other, whichever screen they were begun on
let targets = [];               // of each upload in line: {folder}, null while that is not settled
let failed = [];                // of all uploads in line, so that none takes the place of another's

function addFiles(files) {
  if (!targets.length) {
    failed = [];
    showProblem(null);
    setState({ sending: { done: 0, total: files.length }, uploadElsewhere: null });
  }
  const target = { folder: null };
  targets.push(target);
  const byName = Boolean(document.querySelector(".screen-train"));   // where the name is in sight; on the others the gallery is
  const folder = goal.then(() => galleryForFiles(files, byName));
  goal = folder.catch(() => {});
  folder.then((found) => { target.folder = found; }).catch(() => {});
  line = line.then(() => send(folder, files, target));
  return line;
}

async function send(into, files, target) {
  try {
    const folder = await into;
    failed.push(...(await sendFiles(folder, files, (done, total) => setState({ sending: { done, total } }))).failed);
    if (getState().gallery?.folder === folder) reloadGallery();
    setState((s) => ({ galleryChanges: s.galleryChanges + 1 }));
    await refreshGalleries();
  } catch (error) {
    failed.push(...files.map(({ name }) => ({ name, error })));
  }
  targets = targets.filter((one) => one !== target);
  if (!targets.length) setState({ sending: null });
  if (failed.length) showProblem({ failed: [...failed] });
}

// After the last upload in line, also of those that come meanwhile: whether all files were taken.
export async function uploadsEnded() {
  if (!targets.length) return true;
  while (targets.length) await line;
  return !failed.length;
}

// Whether pictures are on their way into a folder, as the form has it. What the server says of it meanwhile is not what it will be.
export const useIsComing = (folder) => Boolean(useStore((s) => s.sending)) && targets.some((one) => [null, folder.trim()].includes(one.folder));

window.addEventListener("beforeunload", (event) => {
  if (!targets.length) return;
  event.preventDefault();
  event.returnValue = true;   // browsers of before 2024 ask only with it
});

const showProblem = (uploadProblem) => setState({ uploadProblem });

// What was chosen or dropped. Captions alone are for pictures that are there: for a gallery of ours that is open.
async function take(files) {
  const sorted = sortFiles(files, Boolean(ownGallery()));
  if (sorted.length) await addFiles(sorted);
  else if (files.length) showProblem({ noPictures: true });
}

const takeDrop = (transfer) => filesOfDrop(transfer).then(take).catch(showProblem);

// The folder of the form as the server writes it, where it is a gallery of ours.
function ownGallery() {
  const { gallery, galleries } = getState();
  const typed = getForm().folder.trim();
  const folder = gallery?.folder === typed ? gallery.root : typed;
  return galleries.find((one) => one.own && one.folder === folder)?.folder;
}

// How far the upload is, and what was not taken; on every screen that shows pictures.
export function Sending() {
  const sending = useStore((s) => s.sending);
  const problem = useStore((s) => s.uploadProblem);
  return html`${sending && html`<div class="sending" role="status"><div class="progress running"><div style=${{ width: `${(100 * sending.done) / sending.total}%` }}></div></div>
      ${t("upload.going", { done: number(sending.done), total: number(sending.total) })}</div>`}
    <${Elsewhere} />
    <${Problem} error=${problem && inWords(problem)} onClose=${() => showProblem(null)} />`;
}

// Put into words when it is shown: the language may have been changed since.
const inWords = (problem) => (problem.failed ? failedFiles(problem.failed) : problem.noPictures ? t("upload.noPictures") : problem);

// That files did not go into the folder that was chosen, and the way back where they may go there.
function Elsewhere() {
  const form = useForm();
  const told = useStore((s) => s.uploadElsewhere);
  if (!told || told.folder !== form.folder) return null;
  const back = () => {
    changeForm({ folder: told.open.folder });
    addFiles(told.files);
  };
  return html`<p class="note" role="status"><${Icon} name="folder" /><span>${t("upload.elsewhere", { name: baseName(told.folder), open: told.open.name })}
    ${told.open.own && html` <button type="button" class="link" onClick=${back}>${t("upload.back", { open: told.open.name })}</button>`}</span></p>`;
}

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

// Files go into the gallery that is chosen, or into a new one where none is; a folder of the user's own is left alone. Where the name in the form has
// become another than the one that the gallery is for, they go into the gallery of that name. The gallery is in the form before its pictures are
// there, so that more of them go into the same one.
async function galleryForFiles(files, byName) {
  const before = getForm().folder;
  const { galleries } = await get("galleries");
  setState({ galleries });
  const name = getForm().name.trim();
  const open = galleries.find((one) => one.own && one.folder === ownGallery());
  const stays = open && (!byName || isFor(open, name, getForm().of) || files.every(isText));
  const named = open && galleries.find((one) => one.own && one.name === name);
  const folder = stays ? open.folder : named?.folder ?? (await newGallery(files));
  if (getForm().folder === before) changeForm({ folder, of: name || (stays ? getForm().of : null) });
  if (before.trim() && !stays) setState({ uploadElsewhere: { folder, files, open: open ?? { name: baseName(before) } } });
  return folder;
}

const isFor = (gallery, name, of) => !name || of === null || [of, gallery.name, gallery.name.replace(/ \d+$/, "")].includes(name);
const baseName = (folder) => folder.trim().split(/[\\/]/).filter(Boolean).at(-1);

async function newGallery(files) {
  const wanted = getForm().name.trim() || folderOf(files) || t("upload.galleryName", { date: new Date().toISOString().slice(0, 10) });
  for (let n = 1; ; n++) {
    try {
      return (await post("galleries", { name: n === 1 ? wanted : `${wanted} ${n}` })).folder;
    } catch (error) {
      if (error.status !== 409 || n > 99) throw error;
    }
  }
}

// Beside the zone a browser would open the file in place of the page; what lies outside of the page is its host's.
export function watchDrops(root) {
  const around = root.parentElement === document.body ? document : root;
  const hasZone = () => Boolean(root.querySelector(".dropzone"));
  around.addEventListener("dragover", (event) => {
    if (!holdsFiles(event) || event.defaultPrevented) return;
    event.preventDefault();
    if (!hasZone()) event.dataTransfer.dropEffect = "none";
  });
  around.addEventListener("drop", (event) => {
    if (!holdsFiles(event) || event.defaultPrevented) return;
    event.preventDefault();
    if (hasZone()) takeDrop(event.dataTransfer);
  });
}

// Everything in it takes files: dropped ones, also whole folders, and pasted ones.
export function DropZone({ children }) {
  const [over, setOver] = useState(0);
  useEffect(() => {
    const pasted = (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (!files.length) return;
      event.preventDefault();
      take(files);
    };
    document.addEventListener("paste", pasted);
    return () => document.removeEventListener("paste", pasted);
  }, []);
  return html`<div class=${`dropzone ${over ? "over" : ""}`}
    onDragEnter=${(event) => { if (holdsFiles(event)) { event.preventDefault(); setOver((n) => n + 1); } }}
    onDragLeave=${(event) => { if (holdsFiles(event)) setOver((n) => Math.max(0, n - 1)); }}
    onDragOver=${(event) => { if (holdsFiles(event)) event.preventDefault(); }}
    onDrop=${(event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      setOver(0);
      takeDrop(event.dataTransfer);
    }}>${children}${over > 0 && html`<div class="drop-hint"><${Icon} name="images" />${t("upload.dropHere")}</div>`}</div>`;
}

const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

export function FileButton({ label }) {
  const input = useRef(null);
  const chosen = async (event) => {
    const files = [...event.target.files];
    event.target.value = "";
    await take(files);
  };
  return html`<button type="button" class="button" onClick=${() => input.current.click()}><${Icon} name="plus" /><span>${label ?? t("upload.choose")}</span></button>
    <input ref=${input} type="file" class="hidden" multiple tabindex="-1" aria-label=${label ?? t("upload.choose")} accept="image/*,.txt,.caption,.csv,.jsonl" onChange=${chosen} />`;
}
