// What the user has typed for the next run. It is kept in the browser with every key press, and the same in all tabs.
import { useEffect, useState } from "./vendor/hooks.mjs";
import { allSettings } from "./live.js";

const KEPT = "hotlora.form";
// `of` is the name for which the folder was chosen or made; null where that is still open
const EMPTY = { folder: "", of: null, name: "", trigger: "", preset: "balanced", subject: "", more: {} };
const FORMER_PRESETS = { thorough: "best" };   // names that forms and runs of before still have
const presetName = (one) => FORMER_PRESETS[one] ?? one;
const listeners = new Set();
let form = read();

function read() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
    const known = { ...EMPTY, of: kept?.name?.trim() ?? null, ...(kept && typeof kept === "object" ? kept : {}) };
    return { ...known, preset: presetName(known.preset) };
  } catch {
    return { ...EMPTY };
  }
}

export const getForm = () => form;

export function changeForm(patch) {
  const isOtherFolder = "folder" in patch && patch.folder !== form.folder;
  form = { ...form, ...(isOtherFolder && { of: (patch.name ?? form.name).trim() }), ...patch };
  try {
    localStorage.setItem(KEPT, JSON.stringify(form));
  } catch { /* private mode or full: the form still works until the page is closed */ }
  for (const listener of listeners) listener();
}

export function changeMore(name, value) {
  const { [name]: _, ...rest } = form.more;
  changeForm({ more: value === undefined ? rest : { ...rest, [name]: value } });
}

window.addEventListener("storage", (event) => {
  if (event.key !== KEPT) return;
  form = read();
  for (const listener of listeners) listener();
});

export function useForm() {
  const [, redraw] = useState(0);
  useEffect(() => {
    const listener = () => redraw((n) => n + 1);
    listeners.add(listener);
    return () => listeners.delete(listener);
  }, []);
  return form;
}

// Prompts that show the subject in other places than the pictures do.
const PROMPTS = {
  person: (who) => [`a photo of ${who}`, `a portrait of ${who} in a forest, evening light`],
  character: (who) => [`${who}, full body, white background`, `${who} walking through a city at night`],
  style: (who) => [`a house by the sea, ${who}`, `a portrait of a woman, ${who}`],
  object: (who) => [`a photo of ${who} on a white table`, `a photo of ${who} in a garden`],
};
const PURPOSE = { person: "person", character: "character", style: "style", object: "object" };   // what captions leave out
export const SUBJECTS = Object.keys(PROMPTS);

// The form as the settings of TrainConfig. Empty fields are left out, so that the server's own defaults count.
export function settingsOf(one) {
  const settings = { train_data_dir: one.folder.trim(), ...one.more };
  if (one.name.trim()) settings.name = one.name.trim();
  if (one.trigger.trim()) settings.trigger = one.trigger.trim();
  if (PURPOSE[one.subject]) settings.purpose ??= PURPOSE[one.subject];
  if (PROMPTS[one.subject] && one.trigger.trim() && settings.preview_prompts === undefined) {
    settings.preview_prompts = PROMPTS[one.subject](one.trigger.trim());
  }
  return settings;
}

export const PREVIEWS = 8;
export const SAVES = 4;

// Previews and saved steps are spread over the run where the user has not said otherwise.
export function spread(settings, steps) {
  return {
    ...settings,
    preview_steps: settings.preview_steps ?? Math.max(1, Math.round(steps / PREVIEWS)),
    save_steps: settings.save_steps ?? Math.max(1, Math.round(steps / SAVES)),
  };
}

// What a plan is asked for. How often previews and saves come is known only when the steps are; until then any number stands for "some".
export function question(one) {
  return { settings: { preview_steps: 1, save_steps: 1, ...settingsOf(one) }, preset: one.preset };
}

// Fill the form from settings, as a file or a former run has them. On a page that has just been opened the list of settings may still
// be on its way; without it none of them would be taken over. Returns what brings back the form as it was.
export async function formFrom(settings, preset) {
  const known = await allSettings();
  const { train_data_dir, name, trigger, ...rest } = settings;
  const more = Object.fromEntries(Object.entries(rest).filter(([key, value]) => value !== null && known.some((one) => one.name === key && !one.decided)));
  const before = form;
  changeForm({ folder: train_data_dir ?? "", name: name ?? "", trigger: trigger ?? "", preset: presetName(preset ?? form.preset), subject: "", more });
  return () => changeForm(before);
}

export const same = (setting, value) => JSON.stringify(value ?? null) === JSON.stringify(setting.default ?? null);
