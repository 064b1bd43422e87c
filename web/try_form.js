// What is typed on the screen Try, kept in the browser.
const KEPT = "hotlora.try";
const EMPTY = { lora: "", step: "", weight: 0.8, prompt: null, negative: "", seed: "1", steps: "25", width: "", height: "", how: "pair" };

export function readTry() {
  try {
    return { ...EMPTY, ...JSON.parse(localStorage.getItem(KEPT) ?? "{}") };
  } catch {
    return { ...EMPTY };
  }
}

export function keepTry(form) {
  try {
    localStorage.setItem(KEPT, JSON.stringify(form));
  } catch { /* it holds until the page is closed */ }
}

// Another LoRA has other saved steps; what was typed stays.
export function chooseLora(name) {
  const form = readTry();
  if (form.lora !== name) keepTry({ ...form, lora: name, step: "" });
}
