// Captions that were typed: kept in the browser with every key press until the server has them, so that no error, reload or
// other writer can lose them.
import { post } from "./api.js";
import { galleryChanged } from "./gallery_data.js";
import { getState, setState, subscribe } from "./store.js";

const KEPT = "hotlora.captions";
const WAIT = 700;
const RETRY = 3000;

// Each page keeps its own, so that two tabs do not write over each other's.
const OWN = `${KEPT}.${Math.random().toString(36).slice(2)}`;
let drafts = adopt();           // {folder: {file: text}}
let timer = 0;
let sending = false;
let open = false;

// What other pages have left behind. One of a page that is still open is sent twice, which changes nothing.
function adopt() {
  const found = {};
  try {
    for (const key of Object.keys(localStorage).filter((one) => one.startsWith(`${KEPT}.`))) {
      for (const [folder, captions] of Object.entries(JSON.parse(localStorage.getItem(key)))) found[folder] = { ...found[folder], ...captions };
      localStorage.removeItem(key);
    }
    if (Object.keys(found).length) localStorage.setItem(OWN, JSON.stringify(found));
  } catch { /* no storage: they are lost with the page, as nothing can be kept */ }
  return found;
}

function keep() {
  try {
    if (Object.keys(drafts).length) localStorage.setItem(OWN, JSON.stringify(drafts));
    else localStorage.removeItem(OWN);
  } catch { /* full or private: they are still in memory and on their way */ }
}

export const draftOf = (folder, file) => drafts[folder]?.[file];

export function typed(folder, captions) {
  drafts = { ...drafts, [folder]: { ...drafts[folder], ...captions } };
  keep();
  tell("waiting");
  setState({ drafts });
  clearTimeout(timer);
  timer = setTimeout(sendCaptions, WAIT);
}

// A failure stays in sight, with its buttons in place, until it is over.
function tell(captionState) {
  if (getState().captionState !== "failed") setState({ captionState });
}

export async function sendCaptions() {
  clearTimeout(timer);
  if (sending) {
    timer = setTimeout(sendCaptions, WAIT);
    return;
  }
  sending = true;
  let failure = null;
  for (const [folder, captions] of Object.entries(drafts)) {
    tell("saving");
    failure = (await send(folder, captions)) ?? failure;
  }
  sending = false;
  if (!Object.keys(drafts).length) {
    setState({ captionState: "saved", captionError: null });
  } else if (failure) {
    setState({ captionState: "failed", captionError: failure });
    // what the server has turned down, it would turn down again
    if (!isFinal(failure)) timer = setTimeout(sendCaptions, RETRY);
  } else {
    timer = setTimeout(sendCaptions, WAIT);
  }
}

const isFinal = (error) => error.status >= 400 && error.status < 500;

// One picture that is gone must not keep the others from being saved.
async function send(folder, captions) {
  try {
    took(folder, captions, (await post("gallery/captions", { folder, captions })).captions);
    return null;
  } catch (error) {
    const files = Object.keys(captions);
    if (!isFinal(error) || files.length === 1) return error;
    let failure = null;
    for (const file of files) failure = (await send(folder, { [file]: captions[file] })) ?? failure;
    return failure;
  }
}

// What was typed while the request was on its way is still to be sent.
function took(folder, captions, written) {
  const left = Object.fromEntries(Object.entries(drafts[folder] ?? {}).filter(([file, text]) => captions[file] !== text));
  setDrafts(folder, left);
  galleryChanged({ folder, captions: written });
}

function setDrafts(folder, captions) {
  const { [folder]: _, ...others } = drafts;
  drafts = Object.keys(captions).length ? { ...others, [folder]: captions } : others;
  keep();
  setState({ drafts });
}

export function dropDrafts() {
  clearTimeout(timer);
  for (const folder of Object.keys(drafts)) setDrafts(folder, {});
  setState({ captionState: "saved", captionError: null });
}

// What a page that was closed too early could not send.
subscribe(() => {
  const now = getState().connection === "open";
  if (now && !open && Object.keys(drafts).length) timer = setTimeout(sendCaptions, 0);
  open = now;
});
setState({ drafts });

// In Chinese a list is parted by ， and 、
const SEPARATOR = /\s*[,，、]\s*/;

export const tagsOf = (caption) => caption.split(SEPARATOR).map((tag) => tag.trim()).filter(Boolean);

// Changes of many captions at once, each from text to text. What is not changed keeps its own separators; of those that are looked for, one is as good as
// another.
export function replaceIn(caption, find, replacement) {
  if (!tagsOf(find).length) return find ? caption.split(find).join(replacement) : caption;
  const escaped = find.split(SEPARATOR).map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return caption.replace(new RegExp(escaped.join(SEPARATOR.source), "g"), () => replacement);
}

export function addTag(caption, typed, atStart) {
  const known = tagsOf(caption);
  const added = [...new Set(tagsOf(typed))].filter((tag) => !known.includes(tag));
  if (!added.length) return caption;
  const separator = (SEPARATOR.exec(known.length ? caption : "") ?? SEPARATOR.exec(typed) ?? [", "])[0].trimStart();
  const rest = caption.trim().replace(atStart ? /^[\s,，、]+/ : /[\s,，、]+$/, "");
  return (atStart ? [...added, rest] : [rest, ...added]).filter(Boolean).join(separator);
}

export function removeTag(caption, typed) {
  const gone = tagsOf(typed);
  const parts = caption.split(new RegExp(`(${SEPARATOR.source})`));
  const kept = parts.flatMap((tag, i) => (i % 2 || gone.includes(tag.trim()) ? [] : [[parts[i - 1], tag]]));
  return 2 * kept.length > parts.length ? caption : kept.map(([separator, tag], i) => (i ? separator : "") + tag).join("");
}
