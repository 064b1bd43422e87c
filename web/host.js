// The program around the page: its theme, its language, and how a LoRA gets from here into a prompt there.
// A1111 and ComfyUI show the page in a frame of their own origin, or have it in their own document.

function outerWindow() {
  if (window.gradioApp || window.parent === window) return window;
  try {
    return window.parent.document ? window.parent : window;
  } catch {
    return window;   // a page of another origin has framed this one
  }
}

const outer = outerWindow();
const asked = new URLSearchParams(location.search);

export const isWebui = () => typeof outer.gradioApp === "function";
export const isComfy = () => Boolean(outer.app?.graph && outer.LiteGraph);
export const isEmbedded = () => outer !== window || isWebui();

// The language of the host where one was chosen there; null leaves it to the browser.
export function askedLanguage() {
  const chosen = outer.opts?.localization || outer.app?.extensionManager?.setting?.get?.("Comfy.Locale");
  return asked.get("lang") ?? (typeof chosen === "string" && chosen !== "None" ? chosen : null);
}

export function followTheme(root) {
  const fixed = asked.get("theme") ?? asked.get("__theme") ?? new URLSearchParams(outer.location.search).get("__theme");
  const apply = () => {
    const theme = fixed === "dark" || fixed === "light" ? fixed : themeOfHost();
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
  };
  apply();
  const watch = new MutationObserver(apply);
  for (const element of [outer.document.documentElement, outer.document.body]) {
    watch.observe(element, { attributes: true, attributeFilter: ["class"] });
  }
  return () => watch.disconnect();
}

function themeOfHost() {
  if (outer === window && !isWebui()) return null;
  const classes = [...outer.document.documentElement.classList, ...outer.document.body.classList];
  return classes.includes("dark") || classes.includes("dark-theme") ? "dark" : "light";
}

export const promptOf = (name, trigger, weight = 0.8) => `<lora:${name}:${weight}>${trigger ? `, ${trigger}` : ""}`;

// Put the LoRA into the prompt of the host. Answers what was done: "sent", "node" or "copied"; null when not even copying worked.
export async function tryIt(name, trigger, weight = 0.8) {
  const prompt = promptOf(name, trigger, weight);
  if (isWebui() && sendToTxt2img(name, prompt)) return "sent";
  if (isComfy() && addPromptNode(prompt)) return "node";
  return (await copy(prompt)) ? "copied" : null;
}

function sendToTxt2img(name, prompt) {
  const root = outer.gradioApp();
  const area = root.querySelector("#txt2img_prompt textarea");
  if (!area) return false;
  area.value = withTag(area.value, name, prompt);
  area.dispatchEvent(new outer.Event("input", { bubbles: true }));
  root.querySelector("#txt2img_lora_extra_refresh_internal")?.click();
  if (typeof outer.switch_to_txt2img === "function") outer.switch_to_txt2img();
  else root.querySelector("#tabs button")?.click();
  area.focus();
  return true;
}

// The prompt with the tag in it once: a tag of the same LoRA is replaced, other text stays.
export function withTag(text, name, prompt) {
  const same = new RegExp(`<lora:${name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}(:[^>]*)?>`, "g");
  const tag = prompt.slice(0, prompt.indexOf(">") + 1);
  if (same.test(text)) return text.replace(same, () => tag);
  return text.trim() ? `${text.trim().replace(/,$/, "")}, ${prompt}` : prompt;
}

function addPromptNode(prompt) {
  const node = outer.LiteGraph.createNode("HotLoRAPrompt");
  if (!node) return false;
  const area = outer.app.canvas?.ds?.visible_area;
  if (area) node.pos = [area[0] + area[2] / 2 - 150, area[1] + area[3] / 2 - 60];
  outer.app.graph.add(node);
  const widget = node.widgets?.find((one) => one.name === "text");
  if (widget) {
    widget.value = prompt;
    widget.callback?.(prompt);
  }
  outer.app.graph.setDirtyCanvas(true, true);
  return true;
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { /* no permission, or a page without https: the old way may work */ }
  const area = document.createElement("textarea");
  area.value = text;
  area.style.position = "fixed";
  area.style.opacity = "0";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}
