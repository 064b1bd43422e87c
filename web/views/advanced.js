// Every other setting, in groups, each with its help; made from what the server says of its settings.
import { useRef, useState } from "../vendor/hooks.mjs";
import { html, toast, useStore } from "../store.js";
import { post } from "../api.js";
import { changeMore, formFrom, getForm, question, same, settingsOf, spread, useForm } from "../form.js";
import { said, settingHelp, settingName, settingUnit, t } from "../i18n.js";
import { Exported, exportJob } from "./bundle.js";
import { Icon, Problem } from "./parts.js";

// A setting that no group names comes under "other", so that a new one is never missing.
const GROUPS = {
  base: ["init_lora", "resolution", "seed"],
  length: ["steps", "epochs", "batch_size", "gradient_accumulation_steps", "repeats"],
  adapter: ["lora_rank", "lora_alpha", "lora_dropout", "rslora", "dora", "lora_plus_ratio", "conv_rank", "conv_alpha", "unet_target_modules", "text_encoder_target_modules"],
  learning: ["learning_rate", "text_encoder_lr", "lr_scheduler", "lr_warmup_steps", "lr_cycles", "optimizer", "optimizer_args", "weight_decay", "max_grad_norm", "ema_decay"],
  pictures: ["purpose", "auto_caption", "caption_model", "leave_out", "metadata_path", "bucketing", "bucket_step", "upscale", "crops", "flip", "masks", "caption_dropout", "shuffle_tags", "keep_tags", "reg_data_dir", "prior_loss_weight", "class_word", "preservation_weight", "max_megapixels"],
  previews: ["preview_steps", "preview_prompts", "preview_seed", "preview_guidance", "save_steps", "save_dtype", "save_format"],
  objective: ["min_snr_gamma", "debiased", "noise_offset", "zero_terminal_snr", "loss_type", "huber_delta", "timestep_sampling", "min_timestep", "max_timestep"],
  memory: ["mixed_precision", "gradient_checkpointing"],
};
const ELSEWHERE = ["train_data_dir", "name", "trigger", "base_model"];

export function groupsOf(settings) {
  const shown = settings.filter((one) => !one.decided && !ELSEWHERE.includes(one.name));
  const byName = Object.fromEntries(shown.map((one) => [one.name, one]));
  const named = new Set(Object.values(GROUPS).flat());
  const groups = Object.entries(GROUPS).map(([group, names]) => [group, names.map((name) => byName[name]).filter(Boolean)]);
  return [...groups, ["other", shown.filter((one) => !named.has(one.name))]].filter(([, members]) => members.length);
}

export function Advanced({ told, where, wasOpened }) {
  const [openAtFirst] = useState(wasOpened);
  const settings = useStore((s) => s.settings);
  const form = useForm();
  const [wanted, setWanted] = useState("");
  const [error, setError] = useState(null);
  const [exported, setExported] = useState(null);
  const send = async () => {
    setError(null);
    setExported(null);
    try {
      const settings = settingsOf(form);
      setExported(await exportJob("bundles", { settings: told ? spread(settings, told.steps) : settings, preset: form.preset }));
    } catch (problem) {
      setError(problem);
    }
  };
  const changed = Object.keys(form.more).length;
  const fits = (one) => !wanted || `${one.name} ${settingName(one)} ${settingHelp(one)}`.toLowerCase().includes(wanted.toLowerCase());
  const groups = groupsOf(settings).map(([group, members]) => [group, members.filter(fits)]).filter(([, members]) => members.length);
  return html`<details class="advanced" open=${openAtFirst}><summary>${t("advanced.title")}${changed > 0 && html` <span class="count">${t("advanced.changed", { n: changed })}</span>`}</summary>
    <div class="advanced-tools">
      <label class="search"><${Icon} name="search" /><span class="hidden">${t("advanced.search")}</span>
        <input type="search" placeholder=${t("advanced.search")} value=${wanted} onInput=${(event) => setWanted(event.target.value)} /></label>
      <${SettingsFile} onError=${setError} />
      <button type="button" class="link" title=${t("bundle.exportHint")} onClick=${send}>${t("bundle.export")}</button>
      ${changed > 0 && html`<button type="button" class="link" onClick=${() => resetAll(form.more)}>${t("advanced.resetAll")}</button>`}
    </div>
    <${Problem} error=${error} onClose=${() => setError(null)} />
    <${Exported} told=${exported} onClose=${() => setExported(null)} />
    ${groups.map(([group, members]) => html`<${Group} key=${group} group=${group} members=${members} more=${form.more} told=${told} isOpen=${Boolean(wanted)} />`)}
    ${settings.length > 0 && groups.length === 0 && html`<p class="hint">${t("advanced.noneFits")}</p>`}
  </details>`;
}

// Folded until it is looked into; a search opens what it found.
function Group({ group, members, more, told, isOpen }) {
  const changed = members.filter((one) => more[one.name] !== undefined).length;
  const [open, setOpen] = useState(false);
  return html`<details class="group" open=${open || isOpen} onToggle=${(event) => { if (!isOpen) setOpen(event.currentTarget.open); }}>
    <summary>${t(`group.${group}`)}${changed > 0 && html` <span class="count">${t("advanced.changed", { n: changed })}</span>`}</summary>
    ${(open || isOpen) && members.map((one) => html`<${SettingRow} key=${one.name} setting=${one} value=${more[one.name]} told=${told} />`)}</details>`;
}

function resetAll(more) {
  for (const name of Object.keys(more)) changeMore(name, undefined);
  toast(t("advanced.wasReset"), { label: t("undo"), run: () => Object.entries(more).forEach(([name, value]) => changeMore(name, value)) });
}

function SettingRow({ setting, value, told }) {
  const changed = value !== undefined;
  const id = `hl-set-${setting.name}`;
  const label = settingName(setting);
  return html`<div class=${`setting ${changed ? "changed" : ""}`}>
    <div class="setting-name"><label for=${id}>${label}</label>
      ${changed && html`<button type="button" class="link" aria-label=${t("advanced.resetOne", { name: label })} onClick=${() => changeMore(setting.name, undefined)}>
        <${Icon} name="undo" />${t("advanced.reset")}</button>`}</div>
    <div class="setting-value"><${Control} id=${id} setting=${setting} value=${value} filled=${told?.filled?.[setting.name]} placeholder=${placeholder(setting, told)} />
      ${setting.unit && html`<span class="unit">${settingUnit(setting)}</span>`}</div>
    <p class="hint" id=${`${id}-hint`} title=${setting.name}>${settingHelp(setting)}</p>
  </div>`;
}

// What counts while the field is empty.
function placeholder(setting, told) {
  const value = { steps: told?.steps, ...(told ? spread({}, told.steps) : {}), ...told?.filled }[setting.name] ?? setting.default;
  if (value === null || value === undefined || value === "") return t("advanced.auto");
  return typeof value === "object" ? (Array.isArray(value) ? value.join("\n") : JSON.stringify(value)) : String(value);
}

function Control({ id, setting, value, filled, placeholder: shown }) {
  const describedBy = `${id}-hint`;
  // the default is no change, but where something else may count without it the default is one
  const isStandard = (next) => (filled === undefined ? same(setting, next) && !setting.filled : filled === next);
  const set = (next) => changeMore(setting.name, next === undefined || isStandard(next) ? undefined : next);
  const standard = filled ?? setting.default;
  if (setting.kind === "bool") {
    return html`<input id=${id} type="checkbox" class="switch" aria-describedby=${describedBy} checked=${value ?? standard} onChange=${(event) => set(event.target.checked)} />`;
  }
  if (setting.choices?.length) {
    return html`<select id=${id} aria-describedby=${describedBy} value=${value ?? standard} onChange=${(event) => set(event.target.value)}>
      ${setting.choices.map((one) => html`<option value=${one}>${one}</option>`)}</select>`;
  }
  if (setting.kind === "list[str]" && !setting.words) {
    return html`<textarea id=${id} rows="2" aria-describedby=${describedBy} placeholder=${t("advanced.onePerLine")} value=${(value ?? []).join("\n")}
      onInput=${(event) => set(event.target.value ? event.target.value.split("\n") : undefined)} onChange=${() => tidyList(setting.name, value)}></textarea>`;
  }
  const whole = setting.kind === "int";
  const isNumber = whole || setting.kind === "float";
  return html`<input id=${id} type="text" inputmode=${isNumber ? (whole ? "numeric" : "decimal") : undefined} autocomplete="off" spellcheck=${false} aria-describedby=${describedBy}
    placeholder=${shown} title=${setting.allowed} value=${textOf(value)} onInput=${(event) => set(valueOf(setting, event.target.value))} />`;
}

function tidyList(name, value) {
  const lines = (value ?? []).map((line) => line.trim()).filter(Boolean);
  changeMore(name, lines.length ? lines : undefined);
}

const textOf = (value) => (value === undefined || value === null ? "" : typeof value === "object" ? (Array.isArray(value) ? value.join(", ") : JSON.stringify(value)) : String(value));

// What was typed, in its type where it is one; the server says what is wrong with the rest.
function valueOf(setting, text) {
  if (text.trim() === "") return undefined;
  if (setting.kind === "dict") {
    // names may go without quotes, as in the YAML of a settings file
    for (const json of [text, text.replace(/([{,]\s*)([a-z_]\w*)(\s*:)/gi, '$1"$2"$3')]) {
      try {
        return JSON.parse(json);
      } catch { /* the next one */ }
    }
  }
  return text;
}

function SettingsFile({ onError }) {
  const input = useRef(null);
  const load = async (event) => {
    const file = event.target.files[0];
    event.target.value = "";
    if (!file) return;
    try {
      const before = getForm();
      const { settings: loaded, warnings } = await post("settings/load", { name: file.name, text: await file.text() });
      const back = await formFrom({ ...loaded, train_data_dir: loaded.train_data_dir && loaded.train_data_dir !== "." ? loaded.train_data_dir : before.folder }, null);
      toast(warnings.length ? said(warnings[0]) : t("advanced.loaded", { name: file.name }), { label: t("undo"), run: back });
    } catch (error) {
      onError(error);
    }
  };
  const save = async () => {
    try {
      const form = getForm();
      const { text } = await post("settings/save", { settings: await complete(form), preset: form.preset });
      download(`${form.name.trim() || "hotlora"}.yaml`, text);
    } catch (error) {
      onError(error);
    }
  };
  return html`<button type="button" class="link" onClick=${() => input.current.click()}>${t("advanced.load")}</button>
    <input ref=${input} type="file" class="hidden" tabindex="-1" accept=".yaml,.yml,.toml,.json" aria-label=${t("advanced.load")} onChange=${load} />
    <button type="button" class="link" onClick=${save}>${t("advanced.save")}</button>`;
}

// With the length that a start would have; without pictures that can be counted it stays open.
async function complete(form) {
  const settings = settingsOf(form);
  const told = await post("jobs/plan", question(form)).catch(() => null);
  if (!told) return settings;
  return { ...spread(settings, told.steps), steps: settings.steps ?? (settings.epochs === undefined ? told.steps : undefined) };
}

function download(name, text) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([text], { type: "text/yaml" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
