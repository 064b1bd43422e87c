// One picture, large, with its caption and the captions that it had before.
import { useEffect, useRef, useState } from "../vendor/hooks.mjs";
import { html } from "../store.js";
import { get, pictureUrl } from "../api.js";
import { sendCaptions, typed } from "../captions.js";
import { said, t, when } from "../i18n.js";
import { Icon } from "./parts.js";
import { TOKENS, tokensOf } from "../tokens.js";
import { captionOf, cutStyle, SaveState } from "./gallery.js";

export function PictureDialog({ gallery, picture, position, onMove, onClose }) {
  const dialog = useRef(null);
  const [past, setPast] = useState([]);
  useEffect(() => {
    dialog.current.showModal();
    dialog.current.querySelector(".stage").focus();   // and not a list whose arrow keys would choose something
  }, []);
  useEffect(() => {
    let current = true;
    setPast([]);
    get("gallery/history", { folder: gallery.folder, file: picture.file }).then((found) => { if (current) setPast(found.history); }, () => {});
    return () => { current = false; };
  }, [gallery.folder, picture.file]);
  const caption = captionOf(gallery.folder, picture);
  const write = (text) => typed(gallery.folder, { [picture.file]: text });
  const key = (event) => {
    const inText = event.target.tagName === "TEXTAREA";
    const way = event.key === "PageDown" || (!inText && event.key === "ArrowRight") ? 1 : event.key === "PageUp" || (!inText && event.key === "ArrowLeft") ? -1 : 0;
    if (!way) return;
    event.preventDefault();
    onMove(way);
  };
  const former = [...new Set(past.map((one) => one.before))].filter((text) => text && text !== caption);
  return html`<dialog class="viewer" ref=${dialog} aria-label=${picture.file} onKeyDown=${key} onClose=${() => { sendCaptions(); onClose(); }}
    onClick=${(event) => { if (event.target === dialog.current) dialog.current.close(); }}>
    <div class="viewer-body">
      <header><p><strong>${picture.file}</strong> <span>${picture.width} × ${picture.height} · ${position}</span></p><${SaveState} />
        <button type="button" class="icon-button" aria-label=${t("close")} onClick=${() => dialog.current.close()}><${Icon} name="x" /></button></header>
      <div class="stage" tabindex="-1"><span class="frame" style=${{ "--ratio": picture.width / picture.height }}>
        <img src=${pictureUrl(gallery.folder, picture.file, 1024, picture.modified)} alt=${caption || picture.file} />
        ${picture.crop && html`<i class="cut" style=${cutStyle(picture)}></i>`}</span></div>
      ${(picture.warnings ?? []).filter((one) => one !== "no caption").map((one) => html`<p class="warning"><${Icon} name="warn" />${said(one)}</p>`)}
      <label class="wide-caption"><span>${t("gallery.caption")} <small>${t("gallery.tokens", { n: tokensOf(caption), most: TOKENS })}</small></span>
        <textarea key=${picture.file} rows="3" spellcheck=${false} value=${caption} onInput=${(event) => write(event.target.value)}></textarea></label>
      ${former.length > 0 && html`<details class="former"><summary>${t("gallery.former", { n: former.length })}</summary>
        <ul>${former.slice(0, 10).map((text) => html`<li><button type="button" class="link" onClick=${() => write(text)}>${text}</button>
          <small>${when(past.find((one) => one.before === text).time)}</small></li>`)}</ul></details>`}
      <footer><button type="button" class="button" onClick=${() => onMove(-1)}><${Icon} name="left" />${t("gallery.previous")}</button>
        <button type="button" class="button" onClick=${() => onMove(1)}>${t("gallery.next")}<${Icon} name="right" /></button>
        <span class="hint">${t("gallery.dialogKeys")}</span></footer>
    </div></dialog>`;
}
