// The check of the gallery: asked for until the server has it, and again after changes.
import { useEffect, useState } from "./vendor/hooks.mjs";
import { get } from "./api.js";
import { useSettled } from "./views/parts.js";

const AGAIN = 500;
const BY_ITSELF = 300;      // pictures up to which a check begins by itself

// {report, works, done, total, error, start}: the newest report stays while the next one is made.
export function useCheck(gallery, settings) {
  const [told, setTold] = useState({ report: null, works: false, error: null });
  const [asked, setAsked] = useState(null);
  const folder = gallery?.folder;
  const wanted = Boolean(folder) && gallery.pictures.length > 0 && (gallery.pictures.length <= BY_ITSELF || asked === folder);
  const state = useSettled(JSON.stringify([folder, settings, gallery && gallery.pictures.map((one) => [one.file, one.modified, one.caption, one.left_out])]), 800);
  useEffect(() => setTold({ report: null, works: false, error: null }), [folder]);
  useEffect(() => {
    const [of, how] = JSON.parse(state);
    if (!wanted || of !== folder) return undefined;
    const leave = new AbortController();
    let timer = 0;
    const ask = async () => {
      try {
        const found = await get("gallery/check", { folder: of, ...how }, { signal: leave.signal });
        setTold((before) => ({ ...found, report: found.report ?? before.report, error: null }));
        if (found.works) timer = setTimeout(ask, AGAIN);
      } catch (error) {
        if (error.name !== "AbortError") setTold({ report: null, works: false, error });
      }
    };
    ask();
    return () => {
      leave.abort();
      clearTimeout(timer);
    };
  }, [state, wanted]);
  return { ...told, waits: Boolean(folder) && !wanted, start: () => setAsked(folder) };
}

const SHOWN_ANYWAY = ["no_caption", "same_file"];

// What the findings say of each picture: {file: [sentence]}.
export function byPicture(report, language) {
  const found = {};
  for (const finding of report?.findings ?? []) {
    if (!SHOWN_ANYWAY.includes(finding.code)) for (const file of finding.files) (found[file] ??= []).push(finding.mark[language]);
  }
  return found;
}
