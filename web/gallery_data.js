// The gallery that is chosen, shared by the screens: a quick reading for the first sight, then a thorough one.
import { get } from "./api.js";
import { getState, setState } from "./store.js";

const LATER = 1500;
let leave = null;
let timer = 0;
let meanwhile = [];   // changes that came while the folder was read: the answer may be of before

export async function loadGallery(folder, resolution) {
  leave?.abort();
  clearTimeout(timer);
  const mine = leave = new AbortController();
  const wanted = folder.trim();
  if (!wanted) {
    setState({ gallery: null, galleryError: null, galleryLoading: false });
    return;
  }
  const before = getState().gallery;
  if (before && before.folder !== wanted) setState({ gallery: null });
  setState({ galleryLoading: true });
  for (const quick of [true, false]) {
    meanwhile = [];
    try {
      const found = await get("gallery", { folder: wanted, quick, resolution }, { signal: mine.signal });
      setState({ gallery: meanwhile.reduce(changed, { ...found, folder: wanted, root: found.folder, resolution }), galleryError: null });
    } catch (error) {
      if (error.name === "AbortError") return;
      // a server that is away says nothing about the folder: what is shown, and maybe typed into, stays
      setState({ gallery: error.status ? null : getState().gallery, galleryError: error, galleryLoading: false });
      return;
    }
  }
  setState({ galleryLoading: false });
}

export function reloadGallery() {
  const { gallery } = getState();
  if (gallery) loadGallery(gallery.folder, gallery.resolution);
}

// After changes of this or another page. Captions come with the event; for anything else the folder is read again.
export function galleryChanged(event) {
  const { gallery, galleryLoading } = getState();
  if (event.captions || event.left_out) {
    if (galleryLoading) meanwhile.push(event);
    if (gallery) setState({ gallery: changed(gallery, event) });
  } else if (gallery && isOf(gallery, event)) {
    clearTimeout(timer);
    timer = setTimeout(reloadGallery, LATER);
  }
}

// The folder may be typed as ~/photos or with a / at its end; the server tells of it by its root, this page also as it was typed.
const isOf = (gallery, event) => event.folder === gallery.root || event.folder === gallery.folder;

function changed(gallery, event) {
  if (!isOf(gallery, event)) return gallery;
  const { captions = {}, left_out = {} } = event;
  const pictures = gallery.pictures.map((one) => {
    const written = captions[one.file] ? withCaption(one, captions[one.file]) : one;
    return one.file in left_out ? { ...written, left_out: left_out[one.file] } : written;
  });
  return { ...gallery, pictures };
}

export function withCaption(picture, written) {
  const warnings = (picture.warnings ?? []).filter((one) => one !== "no caption");
  return { ...picture, ...written, warnings: written.caption || picture.folder_caption ? warnings : ["no caption", ...warnings] };
}
