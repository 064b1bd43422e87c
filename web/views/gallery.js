// The gallery: pictures in a grid that draws only what is in sight, captions edited in place, and tools for many at once.
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "../vendor/hooks.mjs";
import { getState, html, toast, useStore } from "../store.js";
import { pictureUrl, post } from "../api.js";
import { changeForm, settingsOf, useForm } from "../form.js";
import { draftOf, dropDrafts, sendCaptions, tagsOf, typed } from "../captions.js";
import { byPicture, useCheck } from "../gallery_check.js";
import { reloadGallery } from "../gallery_data.js";
import { language, number, said, t } from "../i18n.js";
import { TOKENS, tokensOf } from "../tokens.js";
import { Action, Empty, Icon, Problem } from "./parts.js";
import { DropZone, FileButton, Sending, useGallery, useIsComing } from "./pictures.js";
import { CaptionDialog, CaptionProgress, UndoCaptions } from "./caption_dialog.js";
import { CheckPanel, leaveOut, LeftOut } from "./check.js";
import { GalleryTools } from "./gallery_tools.js";
import { PictureDialog } from "./picture_dialog.js";
import { Thumbnail } from "./thumbnail.js";

const CELL = 210;            // the least width of a cell
const CELL_HEIGHT = 292;
const GAP = 12;
const SPARE_ROWS = 2;
const SIDES = { sdxl: 1024, flux: 1024, sd3: 1024, demo: 64 };

// The side that pictures are trained at: chosen, or the base's own.
function sideOf(status, { resolution, base_model: chosen }) {
  const base = chosen ?? status?.base?.name ?? status?.bases?.[0];
  const family = base === "demo" ? base : status?.base?.name === base ? status?.base?.family : null;
  return Number(resolution) || SIDES[family] || 512;
}

export function GalleryScreen() {
  const form = useForm();
  const side = sideOf(useStore((s) => s.status), form.more);
  const [showCut, setShowCut] = useState(false);
  const resolution = showCut ? side : undefined;
  const gallery = useGallery(form.folder, resolution);
  const error = useStore((s) => s.galleryError);
  const loading = useStore((s) => s.galleryLoading);
  const isComing = useIsComing(form.folder);
  useStore((s) => s.drafts);
  useStore((s) => s.tokensKnown);
  const [search, setSearch] = useState("");
  const [selected, setSelected] = useState(new Set());
  const [problem, setProblem] = useState(null);
  const [open, setOpen] = useState(null);          // the file that is shown large: its place in the list may change while its caption is typed
  const [only, setOnly] = useState(null);          // pictures of a finding: {label, files}
  const [captions, setCaptions] = useState(null);   // for which pictures captions are asked for: {files}
  const [compare, setCompare] = useState(false);
  const check = useCheck(gallery, { resolution: side, purpose: settingsOf(form).purpose, trigger: form.trigger.trim() || undefined,
    compare: compare || undefined });
  const found = useMemo(() => byPicture(check.report, language()), [check.report]);
  useEffect(() => { setSelected(new Set()); setOnly(null); }, [form.folder]);

  const pictures = gallery?.pictures ?? [];
  const shown = useFound(gallery, pictures, search, only);
  const at = shown.findIndex((one) => one.file === open);
  useEffect(() => { if (open !== null && gallery && at < 0) setOpen(null); }, [open, gallery, at]);
  const chosen = shown.filter((one) => selected.has(one.file));
  return html`<${DropZone}><section class="card gallery" aria-labelledby="hl-gallery-title">
    <header class="gallery-head"><h1 id="hl-gallery-title">${t("nav.gallery")}</h1><${FolderChooser} /><${FileButton} />
      ${pictures.length > 0 && html`<button type="button" class="button" onClick=${() => setCaptions({ files: chosen.length ? chosen.map((one) => one.file) : null })}>
        <${Icon} name="wand" />${t("caption.button")}</button>`}</header>
    <${Sending} />
    <${Problem} error=${problem} onClose=${() => setProblem(null)} />
    ${form.folder.trim() && error && html`<${Problem} error=${error} />`}
    ${!form.folder.trim() && !isComing && html`<${Empty} icon="images" title=${t("gallery.none")}><p>${t("upload.drop")}</p><p class="hint">${t("upload.hint")}</p><//>`}
    ${gallery && !pictures.length && !loading && !isComing && html`<${Empty} icon="images" title=${t("gallery.empty")}><p>${t("upload.drop")}</p><//>`}
    ${loading && !gallery && html`<p class="hint" aria-busy="true">${t("plan.reading")}</p>`}
    ${gallery && html`<${Notices} gallery=${gallery} />`}
    ${gallery && html`<${CaptionProgress} folder=${gallery.root} />`}
    ${pictures.length > 0 && html`
      <${CheckPanel} gallery=${gallery} check=${check} compare=${compare} onCompare=${setCompare} onShow=${(label, files) => setOnly({ label, files })}
        onCaptions=${(files) => setCaptions({ files })} />
      <${GalleryTools} gallery=${gallery} pictures=${chosen.length ? chosen : shown} chosen=${chosen.length} search=${search} onSearch=${setSearch} />
      <div class="gallery-bar"><span>${t("gallery.shown", { shown: number(shown.length), all: number(pictures.length) })}</span>
        <label class="check"><input type="checkbox" checked=${showCut} onChange=${(event) => setShowCut(event.target.checked)} />${t("gallery.cut")}</label>
        ${chosen.length > 0 && html`<span>${t("gallery.selected", { n: chosen.length })}</span>
          <${Action} label=${t("check.leaveOut")} onError=${setProblem} run=${() => leaveOut(gallery.folder, chosen.map((one) => one.file))} />
          <${Action} icon="trash" label=${t("gallery.remove")} onError=${setProblem} run=${() => removeFiles(gallery, chosen, setProblem)} />
          <button type="button" class="link" onClick=${() => setSelected(new Set())}>${t("gallery.unselect")}</button>`}
        ${only && html`<button type="button" class="chip" aria-pressed="true" onClick=${() => setOnly(null)}>${only.label} <${Icon} name="x" /><span class="hidden">${t("check.all")}</span></button>`}
        <${UndoCaptions} gallery=${gallery} onError=${setProblem} />
        <${SaveState} /></div>
      <${Grid} gallery=${gallery} pictures=${shown} found=${found} selected=${selected} onSelect=${setSelected} showCut=${showCut} onOpen=${(index) => setOpen(shown[index].file)}
        onRemove=${(some) => removeFiles(gallery, some, setProblem).catch(setProblem)} />`}
    ${at >= 0 && html`<${PictureDialog} gallery=${gallery} picture=${shown[at]} position=${t("gallery.position", { n: at + 1, all: shown.length })}
      onMove=${(by) => setOpen(shown[Math.min(shown.length - 1, Math.max(0, at + by))].file)} onClose=${() => setOpen(null)} />`}
    ${captions && gallery && html`<${CaptionDialog} folder=${gallery.folder} files=${captions.files} onClose=${() => setCaptions(null)} />`}
  </section><//>`;
}

export const captionOf = (folder, one) => draftOf(folder, one.file) ?? one.caption;

// What was found stays until something else is looked for: a picture whose caption is being typed must not go, and another take its place.
function useFound(gallery, pictures, search, only) {
  const stay = useRef({});
  if (stay.current.folder !== gallery?.folder || stay.current.search !== search || stay.current.only !== only) {
    stay.current = { folder: gallery?.folder, search, only, files: new Set() };
  }
  const { files } = stay.current;
  return pictures.filter((one) => {
    const isFound = files.has(one.file) || (matches(gallery.folder, one, search) && (!only || only.files.includes(one.file)));
    if (isFound) files.add(one.file);
    return isFound;
  });
}

function matches(folder, one, search) {
  const wanted = search.trim().toLowerCase();
  if (!wanted) return true;
  const caption = captionOf(folder, one);
  if (wanted.startsWith("tag:")) return tagsOf(caption.toLowerCase()).includes(wanted.slice(4).trim());
  return caption.toLowerCase().includes(wanted) || one.file.toLowerCase().includes(wanted);
}

function FolderChooser() {
  const form = useForm();
  const galleries = useStore((s) => s.galleries);
  const known = galleries.some((one) => one.folder === form.folder.trim());
  return html`<label class="folder-choice"><span class="hidden">${t("train.folder")}</span>
    <select value=${form.folder.trim()} onChange=${(event) => changeForm({ folder: event.target.value })}>
      <option value="">${t("gallery.choose")}</option>
      ${!known && form.folder.trim() && html`<option value=${form.folder.trim()}>${form.folder.trim()}</option>`}
      ${galleries.map((one) => html`<option value=${one.folder}>${one.name} (${number(one.pictures ?? 0)})</option>`)}
    </select></label>`;
}

function Notices({ gallery }) {
  const { warnings = [], skipped = [] } = gallery;
  return html`${warnings.map((one) => html`<p class="warning"><${Icon} name="warn" />${said(one)}</p>`)}
    ${skipped.length > 0 && html`<details class="skipped"><summary>${t("train.skipped", { n: skipped.length })}</summary>
      <ul>${skipped.map((one) => html`<li><b>${one.file}</b> ${said(one.reason)}</li>`)}</ul></details>`}`;
}

async function removeFiles(gallery, some, onProblem) {
  const files = some.map((one) => one.file);
  await post("gallery/remove", { folder: gallery.folder, files });
  reloadGallery();
  const back = () => post("gallery/restore", { folder: gallery.folder, files }).then(reloadGallery, onProblem);
  toast(t("gallery.removed", { n: files.length }), { label: t("undo"), run: back });
}

export function SaveState() {
  const state = useStore((s) => s.captionState);
  const error = useStore((s) => s.captionError);
  if (!state) return null;
  if (state === "failed") {
    return html`<span class="save-state wrong" role="status"><${Icon} name="warn" />${t("captions.failed", { why: said(error.message) })}
      <button type="button" class="link" onClick=${sendCaptions}>${t("again")}</button>
      ${error.status >= 400 && error.status < 500 && html`<button type="button" class="link" onClick=${dropDrafts}>${t("captions.drop")}</button>`}</span>`;
  }
  return html`<span class="save-state" role="status">${state === "saved" ? html`<${Icon} name="check" />` : ""}${t(`captions.${state}`)}</span>`;
}

// Only the rows in sight, and a few more, exist as elements; the rest is empty space of the right height.
function Grid({ gallery, pictures, found, selected, onSelect, showCut, onOpen, onRemove }) {
  const box = useRef(null);
  const [view, setView] = useState({ width: 800, top: 0, height: 900 });
  const [focus, setFocus] = useState(0);
  const last = useRef(0);
  const leaving = useRef(null);   // what the Delete key removes: {files, index of what takes the place}
  useLayoutEffect(() => {
    const measure = () => {
      const place = box.current?.getBoundingClientRect();
      if (place) setView({ width: place.width, top: Math.max(0, -place.top), height: window.innerHeight });
    };
    measure();
    const watch = new ResizeObserver(measure);
    watch.observe(box.current);
    window.addEventListener("scroll", measure, { passive: true, capture: true });
    return () => {
      watch.disconnect();
      window.removeEventListener("scroll", measure, { capture: true });
    };
  }, []);
  const columns = Math.max(1, Math.floor((view.width + GAP) / (CELL + GAP)));
  const rowHeight = CELL_HEIGHT + GAP;
  const rows = Math.ceil(pictures.length / columns);
  const from = Math.max(0, Math.floor(view.top / rowHeight) - SPARE_ROWS);
  const to = Math.min(rows, Math.ceil((view.top + view.height) / rowHeight) + SPARE_ROWS);
  // shares of the box, not pixels: until a change of the window is measured, the cells are narrower and never outside of it
  const left = (column) => `calc((100% + ${GAP}px) * ${column / columns})`;
  const width = `calc((100% - ${GAP * (columns - 1)}px) / ${columns})`;
  const go = (index, part = "picture") => {
    const next = Math.min(pictures.length - 1, Math.max(0, index));
    setFocus(next);
    focusCell(box.current, next, Math.floor(next / columns) * rowHeight, part);
  };
  const remove = (index) => {
    const some = selected.has(pictures[index].file) ? pictures.filter((one) => selected.has(one.file)) : [pictures[index]];
    leaving.current = { files: some.map((one) => one.file), index: pictures.slice(0, index).filter((one) => !some.includes(one)).length };
    onRemove(some);
  };
  // with its picture the focus goes to <body>, and the next key would go nowhere
  useLayoutEffect(() => {
    if (!leaving.current || pictures.some((one) => leaving.current.files.includes(one.file))) return;
    const { index } = leaving.current;
    leaving.current = null;
    if (document.activeElement === document.body) go(index);
  }, [pictures]);
  const select = (index, event) => {
    const some = new Set(selected);
    const file = pictures[index].file;
    if (event.shiftKey) for (let i = Math.min(last.current, index); i <= Math.max(last.current, index); i++) some.add(pictures[i].file);
    else if (some.has(file)) some.delete(file);
    else some.add(file);
    last.current = index;
    onSelect(some);
  };
  const key = (event, index) => {
    const way = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -index, End: pictures.length - 1 - index }[event.key];
    if (way !== undefined) go(index + way);
    else if (event.key === "Enter") go(index, "caption");
    else if (event.key === " ") select(index, event);
    else if (event.key === "o") onOpen(index);
    else if (event.key === "Delete") remove(index);
    else if (event.key === "a" && (event.ctrlKey || event.metaKey)) onSelect(new Set(pictures.map((one) => one.file)));
    else if (event.key === "Escape") onSelect(new Set());
    else return;
    event.preventDefault();
  };
  const cells = [];
  for (let i = from * columns; i < Math.min(to * columns, pictures.length); i++) {
    const style = { left: left(i % columns), top: `${Math.floor(i / columns) * rowHeight}px`, width, height: `${CELL_HEIGHT}px` };
    cells.push(html`<${Cell} key=${pictures[i].file} index=${i} all=${pictures.length} gallery=${gallery} one=${pictures[i]} found=${found[pictures[i].file]} style=${style} showCut=${showCut}
      caption=${captionOf(gallery.folder, pictures[i])} isSelected=${selected.has(pictures[i].file)} isFocus=${i === focus} onKey=${key} onSelect=${select} onGo=${go} onOpen=${onOpen} />`);
  }
  return html`<p class="hint keys">${t("gallery.keys")}</p>
    <div class="grid" ref=${box} role="list" aria-label=${t("nav.gallery")} style=${{ height: `${Math.max(0, rows * rowHeight - GAP)}px` }}>${cells}</div>`;
}

// The cell may not be drawn yet: bring its row into sight first.
function focusCell(box, index, top, part) {
  const find = () => box.querySelector(`[data-index="${index}"] ${part === "caption" ? "textarea" : ".thumb"}`);
  const found = find();
  if (found) {
    found.focus();
    found.scrollIntoView({ block: "nearest" });
    return;
  }
  window.scrollTo({ top: box.getBoundingClientRect().top + window.scrollY + top - window.innerHeight / 3 });
  requestAnimationFrame(() => requestAnimationFrame(() => find()?.focus()));
}

function Cell({ index, all, gallery, one, found = [], style, caption, isSelected, isFocus, showCut, onKey, onSelect, onGo, onOpen }) {
  const count = tokensOf(caption);
  const warnings = [...(one.warnings ?? []).filter((warning) => warning !== "no caption" || !caption.trim()), ...found];
  const write = (event) => typed(gallery.folder, { [one.file]: event.target.value });
  const key = (event) => {
    if (event.key === "Escape") onGo(index);
    else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) onGo(index + 1, "caption");
    else return;
    event.preventDefault();
  };
  return html`<div class=${`cell ${isSelected ? "selected" : ""} ${one.left_out ? "left-out" : ""}`} role="listitem" data-index=${index} style=${style} aria-setsize=${all} aria-posinset=${index + 1}>
    <button type="button" class="thumb" tabindex=${isFocus ? 0 : -1} aria-pressed=${isSelected} aria-label=${t("gallery.picture", { name: one.file })}
      onClick=${(event) => select(event, index, onSelect, onGo)} onDblClick=${(event) => { onSelect(index, event); onOpen(index); }} onKeyDown=${(event) => onKey(event, index)}>
      <span class="frame" style=${{ "--ratio": one.width / one.height }}>
        <${Thumbnail} src=${pictureUrl(gallery.folder, one.file, 256, one.modified)} />
        ${showCut && one.crop && html`<i class="cut" style=${cutStyle(one)}></i>`}</span>
    </button>
    ${isSelected && html`<span class="mark"><${Icon} name="check" /></span>`}
    ${one.left_out && html`<${LeftOut} folder=${gallery.folder} one=${one} />`}
    <p class="cell-line"><span class="file" title=${`${one.file}\n${one.width} × ${one.height}`}>${one.file}</span>
      ${one.repeats > 1 && html`<span title=${t("gallery.repeats", { n: one.repeats })}>×${one.repeats}</span>`}
      ${one.automatic && caption === one.caption && html`<span class="automatic" title=${t("caption.automaticHint")}>${t("caption.automatic")}</span>`}
      ${warnings.length > 0 && html`<span class="warn" title=${warnings.map(said).join("\n")}><${Icon} name="warn" /><span class="hidden">${warnings.map(said).join(". ")}</span></span>`}
      <span class=${count > TOKENS ? "tokens over" : "tokens"} title=${t("gallery.tokens", { n: count, most: TOKENS })}>${count}</span>
      <button type="button" class="icon-button" tabindex="-1" aria-label=${t("gallery.open", { name: one.file })} onClick=${() => onOpen(index)}><${Icon} name="search" /></button></p>
    <textarea spellcheck=${false} aria-label=${t("gallery.captionOf", { name: one.file })} placeholder=${one.folder_caption ? t("gallery.folderCaption", { name: one.folder_caption }) : t("gallery.noCaption")} value=${caption} onInput=${write} onKeyDown=${key}
      onBlur=${() => sendIfAny()}></textarea>
  </div>`;
}

function select(event, index, onSelect, onGo) {
  onGo(index);
  if (event.detail !== 2) onSelect(index, event);
}

const sendIfAny = () => { if (Object.keys(getState().drafts ?? {}).length) sendCaptions(); };

export const cutStyle = (one) => {
  const [left, top, right, bottom] = one.crop;
  return { left: `${(100 * left) / one.width}%`, top: `${(100 * top) / one.height}%`, width: `${(100 * (right - left)) / one.width}%`, height: `${(100 * (bottom - top)) / one.height}%` };
};
