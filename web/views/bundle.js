// A job goes to another machine as one file, and the LoRA that was trained there comes back.
import { useRef, useState } from "../vendor/hooks.mjs";
import { html } from "../store.js";
import { fromServer, importLora, post } from "../api.js";
import { said, t } from "../i18n.js";
import { refreshLoras } from "../live.js";
import { chooseLora } from "../try_form.js";
import { Icon } from "./parts.js";

// The server makes the file first, so that the browser gets it whole; then it is downloaded.
export async function exportJob(path, body) {
  const told = await post(path, body);
  const link = Object.assign(document.createElement("a"), { href: fromServer(told.address), download: told.file });
  document.body.append(link);
  link.click();
  link.remove();
  return told;
}

export function Exported({ told, onClose }) {
  if (!told) return null;
  const base = told.base.name === "demo" ? "" : ` --base path/to/${told.base.name}.safetensors`;
  return html`<${Told} icon="check" onClose=${onClose} warnings=${told.warnings}>
    <p>${t("bundle.exported", { file: told.file, size: Math.max(0.1, told.bytes / 1e6).toFixed(1), n: told.pictures, base: told.base.name })}</p>
    <p><code>python train.py run-bundle "${told.file}"${base}</code></p><p class="hint">${t("bundle.then")}</p><//>`;
}

export function ImportResult({ onError }) {
  const input = useRef(null);
  const [told, setTold] = useState(null);
  const [busy, setBusy] = useState(false);
  const take = async (event) => {
    const file = event.target.files[0];
    event.target.value = "";
    if (!file) return;
    onError(null);
    setTold(null);
    setBusy(true);
    try {
      setTold(await importLora(file));
      await refreshLoras();
    } catch (error) {
      onError(error);
    } finally {
      setBusy(false);
    }
  };
  return html`<section class="card import"><div class="import-head"><button type="button" class="button" disabled=${busy} onClick=${() => input.current.click()}>
      <${Icon} name="plus" /><span>${t(busy ? "bundle.importing" : "bundle.import")}</span></button><span class="hint">${t("bundle.importHint")}</span></div>
    <input ref=${input} type="file" class="hidden" tabindex="-1" accept=".safetensors,.zip" aria-label=${t("bundle.import")} onChange=${take} />
    ${told && html`<${Told} icon="check" onClose=${() => setTold(null)} warnings=${told.warnings}>
      <p>${t("bundle.imported", { tag: told.tag })} <a href="#/try" onClick=${() => chooseLora(told.name)}>${t("run.try")}</a></p>
      ${told.kept && html`<p>${t("bundle.kept", { name: told.name, kept: told.kept })}</p>`}<//>`}</section>`;
}

function Told({ icon, warnings, onClose, children }) {
  return html`<div class="note" role="status"><${Icon} name=${icon} /><div class="bundle-text">${children}
      ${warnings.map((one) => html`<p class="warning"><${Icon} name="warn" />${said(one)}</p>`)}</div>
    <button type="button" class="icon-button" aria-label=${t("close")} onClick=${onClose}><${Icon} name="x" /></button></div>`;
}
