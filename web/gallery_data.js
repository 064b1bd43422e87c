// The gallery that is chosen, shared by the screens: a quick reading for the first sight, then a thorough one.
import { get } from "./api.js";
import { getState, setState } from "./store.js";

const LATER = 1500;
let leave = null;
let timer = 0;

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
    try {
      const found = await get("gallery", { folder: wanted, quick, resolution }, { signal: mine.signal });
      setState({ gallery: { ...found, folder: wanted, root: found.folder, resolution }, galleryError: null });
    } catch (error) {
      if (error.name === "AbortError") return;
      setState({ gallery: null, galleryError: error, galleryLoading: false });
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
  const { gallery } = getState();
  if (!gallery || event.folder !== gallery.root) return;   // the folder may be typed as ~/photos or with a / at its end
  if (event.captions) {
    const pictures = gallery.pictures.map((one) => (event.captions[one.file] ? withCaption(one, event.captions[one.file]) : one));
    setState({ gallery: { ...gallery, pictures } });
    return;
  }
  if (event.left_out) {
    setState({ gallery: { ...gallery, pictures: gallery.pictures.map((one) => (one.file in event.left_out ? { ...one, left_out: event.left_out[one.file] } : one)) } });
    return;
  }
  clearTimeout(timer);
  timer = setTimeout(reloadGallery, LATER);
}

export function withCaption(picture, written) {
  const warnings = (picture.warnings ?? []).filter((one) => one !== "no caption");
  return { ...picture, ...written, warnings: written.caption ? warnings : ["no caption", ...warnings] };
}
