// Files from the user's machine: out of a drop with its folders, and one after the other to the server.
import { upload } from "./api.js";

const PICTURE = /\.(jpe?g|jfif|png|webp|bmp|gif|avif|tiff?)$/i;
const TEXT = /(\.(txt|caption)|^metadata\.(csv|jsonl))$/i;
const AT_ONCE = 3;

const paths = new WeakMap();   // of files out of dropped folders

export const pathOf = (file) => paths.get(file) ?? (file.webkitRelativePath || file.name);

// Pictures and captions; the captions last, as they belong to pictures. Anything else is passed over.
export function sortFiles(files) {
  const named = files.filter((file) => PICTURE.test(file.name) || TEXT.test(file.name) || file.type.startsWith("image/"));
  const pictures = named.filter((file) => !TEXT.test(file.name));
  return pictures.length ? [...pictures, ...named.filter((file) => TEXT.test(file.name))] : [];
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

// A pasted picture is always called image.png; the server finds a free name.
export async function sendFiles(folder, files, onProgress) {
  const failed = [];
  const sent = [];
  const top = folderOf(files);
  let next = 0;
  let done = 0;
  onProgress(0, files.length);
  const worker = async () => {
    while (next < files.length) {
      const file = files[next++];
      try {
        sent.push((await upload(folder, file, nameInGallery(file, top))).file);
      } catch (error) {
        failed.push({ name: file.name, error });
      }
      onProgress(++done, files.length);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  return { sent, failed };
}
