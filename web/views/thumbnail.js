// A thumbnail on a canvas. As an image, each one that was ever in sight would stay decoded in the browser's memory.
import { useEffect, useRef, useState } from "../vendor/hooks.mjs";
import { html } from "../store.js";
import { Icon } from "./parts.js";

export function Thumbnail({ src }) {
  const canvas = useRef(null);
  const [state, setState] = useState("waiting");
  useEffect(() => {
    const leave = new AbortController();
    const shown = canvas.current;
    paint(shown, src, leave.signal).then(() => setState("shown"), (error) => { if (error.name !== "AbortError") setState("failed"); });
    return () => {
      leave.abort();
      shown.width = shown.height = 0;   // gives its memory back now, and not when somebody collects it
    };
  }, [src]);
  return html`<canvas ref=${canvas} class="thumbnail" width="0" height="0" data-state=${state} aria-hidden="true"></canvas>${state === "failed" && html`<${Icon} name="image" />`}`;
}

async function paint(canvas, src, signal) {
  const answer = await fetch(src, { credentials: "same-origin", signal });
  if (!answer.ok) throw new Error(answer.statusText);
  const picture = await createImageBitmap(await answer.blob());
  if (signal.aborted) {
    picture.close();
    throw new DOMException("", "AbortError");
  }
  canvas.width = picture.width;
  canvas.height = picture.height;
  canvas.getContext("bitmaprenderer").transferFromImageBitmap(picture);
}
