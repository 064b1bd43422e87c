// Files from the user's machine: out of a drop with its folders, and one after the other to the server.
import { upload } from "./api.js";
import { t } from "./i18n.js";

const PICTURE = /\.(jpe?g|jfif|png|webp|bmp|gif|avif|tiff?|hei[cf])$/i;   // some of them the server turns down, and says why
const TEXT = /(\.(txt|caption)|^metadata\.(csv|jsonl))$/i;
const TABLE = /^metadata\.(csv|jsonl)$/i;
const MASK = /_mask$/i;
const NUMBERED = / \(\d+\)(_mask)?$/;
const AT_ONCE = 3;

const paths = new WeakMap();   // of files out of dropped folders

export const isText = (file) => TEXT.test(file.name);

export const pathOf = (file) => paths.get(file) ?? (file.webkitRelativePath || file.name);

// Pictures and captions; the captions last, as they belong to pictures. Anything else is passed over, and captions alone where there are no pictures yet.
export function sortFiles(files, hasPictures) {
  const named = files.filter((file) => PICTURE.test(file.name) || isText(file) || file.type.startsWith("image/"));
  const pictures = named.filter((file) => !isText(file));
  return pictures.length || hasPictures ? [...pictures, ...named.filter((file) => isText(file))] : [];
}

// The folder that all files lie in, where one was dropped.
export function folderOf(files) {
  const tops = new Set(files.map((file) => (pathOf(file).includes("/") ? pathOf(file).split("/")[0] : "")));
  return tops.size === 1 ? [...tops][0] : "";
}

// A folder's own name is the gallery's; one such as 10_name says how often its pictures count, and stays.
function nameInGallery(file, top) {
  const path = pathOf(file);
  return top && !/^\d+_/.test(top) ? path.slice(top.length + 1) : path;
}

// The entries must be taken before anything is waited for: the drop forgets them.
export async function filesOfDrop(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  const files = [];
  for (const entry of entries) await collect(entry, files);
  return files;
}

async function collect(entry, files) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    paths.set(file, entry.fullPath.replace(/^\//, ""));
    files.push(file);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return;
    for (const one of some) await collect(one, files);
  }
}

// A pasted picture is always called image.png; the server finds a free name. What belongs to a picture, its caption file or mask, goes by the name
// that the picture got: under its own it would be another picture's that is there already.
export async function sendFiles(folder, files, onProgress) {
  const failed = [];
  const sent = [];
  const top = folderOf(files);
  const placed = new Map();   // path of a picture, as it was sent -> name that it got, or null
  let done = 0;
  onProgress(0, files.length);
  const sendAll = async (some, nameOf) => {
    let next = 0;
    const worker = async () => {
      while (next < some.length) {
        const file = some[next++];
        const name = nameOf(file);
        let got = null;
        if (!isText(file)) placed.set(nameInGallery(file, top), null);   // in the order of the files, whichever comes first
        try {
          if (name && TABLE.test(file.name)) checkNames(placed);
          if (name) sent.push(got = (await upload(folder, file, name, isAlone(file))).file);
        } catch (error) {
          failed.push({ name: file.name, error });
        }
        if (!isText(file)) placed.set(nameInGallery(file, top), got);
        onProgress(++done, files.length);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, worker));
  };
  const stems = new Map();   // stem -> how many pictures of this upload have it
  for (const stem of files.filter((file) => !isText(file)).map((file) => stemOf(nameInGallery(file, top)))) stems.set(stem, (stems.get(stem) ?? 0) + 1);
  // of one stem and sent together, they are meant to have their caption in common
  const isAlone = (file) => stems.get(stemOf(nameInGallery(file, top))) === 1;
  const isMask = (stem) => MASK.test(stem) && stems.has(stem.replace(MASK, ""));
  const belongs = (file) => isText(file) || isMask(stemOf(nameInGallery(file, top)));
  await sendAll(files.filter((file) => !belongs(file)), (file) => nameInGallery(file, top));
  await sendAll(files.filter(belongs), (file) => besideItsPicture(nameInGallery(file, top), placed));
  return { sent, failed };
}

const stemOf = (path) => path.replace(/\.[^./]*$/, "");

// A table names pictures as they were sent; under such a name there may be another picture in the gallery.
function checkNames(placed) {
  const [name, got] = [...placed].find(([name, got]) => got && NUMBERED.test(stemOf(got)) && !NUMBERED.test(stemOf(name))) ?? [];
  if (got) throw new Error(t("upload.otherName", { name, got }));
}

// `photo.txt`, `photo.jpg.txt` or `photo_mask.png` for the name that `photo.jpg` got; null where that one was not taken.
function besideItsPicture(path, placed) {
  const stem = stemOf(path);
  const suffix = path.slice(stem.length);
  if (placed.has(stem)) return placed.get(stem) && placed.get(stem) + suffix;
  const mask = MASK.test(stem) && !TEXT.test(path) ? MASK.exec(stem)[0] : "";
  const own = stem.slice(0, stem.length - mask.length);
  const got = [...placed].filter(([sent]) => stemOf(sent) === own).map(([, name]) => name);
  if (!got.length) return path;
  const stems = new Set(got.filter(Boolean).map(stemOf));
  return stems.size === 1 ? [...stems][0] + mask + suffix : stems.size ? path : null;
}
