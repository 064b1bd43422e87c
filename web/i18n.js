// Texts by key in the language of the user. A text is a string, or a function of named values.
import en from "./text/en.js";

export const LANGUAGES = { en: "English", zh: "中文" };
const TABLES = { en };
let zhServer = [];
let zhSettings = {};
let zhUnits = {};
const KEPT = "hotlora.language";
let current = "en";

export const language = () => current;

export function chooseLanguage(asked) {
  const wanted = kept() ?? asked ?? navigator.language;
  return use(String(wanted).toLowerCase().startsWith("zh") ? "zh" : "en");
}

export function keepLanguage(code) {
  try {
    localStorage.setItem(KEPT, code);
  } catch { /* private mode: it holds until the page is closed */ }
  return use(code);
}

// Who reads English need not wait for the other tables.
async function use(code) {
  if (code === "zh" && !TABLES.zh) {
    try {
      const [texts, server, settings] = await Promise.all([import("./text/zh.js"), import("./text/zh_server.js"), import("./text/zh_settings.js")]);
      TABLES.zh = texts.default;
      ({ zhServer } = server);
      ({ zhSettings, zhUnits } = settings);
    } catch {
      return;   // the server is away: it stays as it is
    }
  }
  current = code;
  document.documentElement.lang = code === "zh" ? "zh-CN" : "en";
}

function kept() {
  try {
    return localStorage.getItem(KEPT);
  } catch {
    return null;
  }
}

export function t(key, values = {}) {
  const text = TABLES[current][key] ?? en[key];
  if (text === undefined) throw new Error(`there is no text ${key}`);
  return typeof text === "function" ? text(values) : text;
}

export const number = (value) => Number(value).toLocaleString(current === "zh" ? "zh-CN" : "en-US");

// A sentence of the server, in Chinese where it is one of the known ones.
export function said(sentence) {
  if (current !== "zh" || !sentence) return sentence ?? "";
  for (const [pattern, chinese] of zhServer) {
    const found = pattern.exec(sentence);
    // a part may be a sentence of its own, such as the reason of a failure
    if (found) return chinese.replace(/\$(\d)/g, (_, part) => said(found[part]));
  }
  return sentence;
}

export function settingName(setting) {
  return current === "zh" ? zhSettings[setting.name]?.[0] ?? setting.name : inWords(setting.name);
}

const SHORT = { lr: "LR", snr: "SNR", ema: "EMA", lora: "LoRA", dora: "DoRA", rslora: "rsLoRA", unet: "UNet" };

function inWords(name) {
  const words = name.split("_").map((word) => SHORT[word] ?? word).join(" ");
  return SHORT[name.split("_")[0]] ? words : words[0].toUpperCase() + words.slice(1);
}

export function settingHelp(setting) {
  return current === "zh" ? zhSettings[setting.name]?.[1] ?? setting.help : setting.help;
}

export const settingUnit = (setting) => (current === "zh" ? zhUnits[setting.unit] ?? setting.unit : setting.unit);

export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  if (hours) return t("time.hours", { hours, minutes });
  if (whole >= 60) return whole < 600 ? t("time.minutes", { minutes, seconds: whole % 60 }) : t("time.wholeMinutes", { minutes });
  return t("time.seconds", { seconds: whole });
}

export function when(seconds) {
  const date = new Date(seconds * 1000);
  const today = date.toDateString() === new Date().toDateString();
  const locale = current === "zh" ? "zh-CN" : undefined;
  const clock = date.toLocaleTimeString(locale, { hour: "2-digit", minute: "2-digit" });
  return today ? clock : `${date.toLocaleDateString(locale)} ${clock}`;
}
