// A table of pictures, and the viewer that opens on one: arrow keys walk along rows and columns, a slider compares two.
import { useEffect, useRef, useState } from "../vendor/hooks.mjs";
import { html } from "../store.js";
import { t } from "../i18n.js";
import { Icon } from "./parts.js";

// `rows` and `columns` are [{key, label}] as they are shown, `at(row key, column key)` is an address or nothing;
// `words` says what up, down, left and right lead to.
export function PictureGrid({ title, rows, columns, at, words }) {
  const [open, setOpen] = useState(null);
  return html`<div class="preview-scroll" tabindex="0" role="group" aria-label=${title}>
      <table class="preview-grid" style=${{ "--columns": columns.length }}><thead><tr><th scope="col"><span class="hidden">${title}</span></th>
        ${columns.map((column) => html`<th scope="col" key=${column.key} title=${column.label}>${column.label}</th>`)}</tr></thead>
      <tbody>${rows.map((row) => html`<tr key=${row.key}><th scope="row">${row.label}</th>
        ${columns.map((column) => html`<td key=${column.key}>${at(row.key, column.key) && html`<button type="button" class="picture-button"
          aria-label=${nameOf(row, column)} onClick=${() => setOpen({ row: row.key, column: column.key })}>
          <img src=${at(row.key, column.key)} alt="" loading="lazy" /></button>`}</td>`)}</tr>`)}</tbody></table>
    </div>
    ${open && html`<${Viewer} title=${title} rows=${rows} columns=${columns} at=${at} words=${words} open=${open} onMove=${setOpen} onClose=${() => setOpen(null)} />`}`;
}

const keyOf = (row, column) => `${row.key}\n${column.key}`;
const nameOf = (row, column) => t("grid.cell", { row: row.label, column: column.label });

function Viewer({ title, rows, columns, at, words, open, onMove, onClose }) {
  const dialog = useRef(null);
  const [other, setOther] = useState("");
  useEffect(() => {
    dialog.current.showModal();
    dialog.current.querySelector(".stage").focus();   // and not a list whose arrow keys would choose something
  }, []);
  const r = rows.findIndex((row) => row.key === open.row);
  const c = columns.findIndex((column) => column.key === open.column);
  const canMove = (down, across) => Boolean(rows[r + down] && columns[c + across] && at(rows[r + down].key, columns[c + across].key));
  const move = (down, across) => { if (canMove(down, across)) onMove({ row: rows[r + down].key, column: columns[c + across].key }); };
  const key = (event) => {
    if (event.target.matches("input, select")) return;
    const way = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!way) return;
    event.preventDefault();
    move(...way);
  };
  // any other one; by key, as rows come while a run goes on
  const groups = rows.map((row) => [row, columns.filter((column) => (row !== rows[r] || column !== columns[c]) && at(row.key, column.key))]);
  const compared = groups.flatMap(([row, some]) => some.map((column) => [row, column])).find(([row, column]) => keyOf(row, column) === other);
  const leftLabel = compared && (compared[1] === columns[c] ? compared[0].label : compared[0] === rows[r] ? compared[1].label : nameOf(...compared));
  const rightLabel = compared && (compared[1] === columns[c] ? rows[r].label : compared[0] === rows[r] ? columns[c].label : nameOf(rows[r], columns[c]));
  const shown = at(rows[r].key, columns[c].key);
  return html`<dialog class="viewer" ref=${dialog} aria-label=${title} onClose=${onClose} onKeyDown=${key}
    onClick=${(event) => { if (event.target === dialog.current) dialog.current.close(); }}>
    <div class="viewer-body">
      <header><p><strong>${rows[r].label}</strong> <span>${columns[c].label}</span></p>
        <label class="compare-with">${t("preview.compare")}
          <select value=${other} onChange=${(event) => setOther(event.target.value)}><option value="">${t("preview.none")}</option>
            ${groups.filter(([, some]) => some.length).map(([row, some]) => html`<optgroup label=${row.label}>${some.map((column) => html`<option
              value=${keyOf(row, column)}>${columns.length > 1 ? column.label : row.label}</option>`)}</optgroup>`)}</select></label>
        <button type="button" class="icon-button" aria-label=${t("close")} onClick=${() => dialog.current.close()}><${Icon} name="x" /></button></header>
      <div class="stage" tabindex="-1">${compared
        ? html`<${Compare} left=${at(compared[0].key, compared[1].key)} right=${shown} leftLabel=${leftLabel} rightLabel=${rightLabel} />`
        : html`<img src=${shown} alt=${nameOf(rows[r], columns[c])} />`}</div>
      <footer>
        ${rows.length > 1 && html`<button type="button" class="button" disabled=${!canMove(-1, 0)} onClick=${() => move(-1, 0)}><${Icon} name="up" />${words.up}</button>
        <button type="button" class="button" disabled=${!canMove(1, 0)} onClick=${() => move(1, 0)}><${Icon} name="down" />${words.down}</button>`}
        ${columns.length > 1 && html`<button type="button" class="button" disabled=${!canMove(0, -1)} onClick=${() => move(0, -1)}><${Icon} name="left" />${words.left}</button>
        <button type="button" class="button" disabled=${!canMove(0, 1)} onClick=${() => move(0, 1)}>${words.right}<${Icon} name="right" /></button>`}
        <span class="hint">${t("grid.keys")}</span>
      </footer>
    </div></dialog>`;
}

// Two pictures on top of each other with a divider that is moved by the mouse, a finger or the arrow keys.
function Compare({ left, right, leftLabel, rightLabel }) {
  const [share, setShare] = useState(50);
  return html`<div class="compare" style=${{ "--share": `${share}%` }}>
    <img src=${right} alt=${rightLabel} /><img class="over" src=${left} alt=${leftLabel} />
    <i class="divider"></i><span class="tag-left">${leftLabel}</span><span class="tag-right">${rightLabel}</span>
    <input type="range" min="0" max="100" step="0.5" value=${share} aria-label=${t("preview.slider")} onInput=${(event) => setShare(Number(event.target.value))} />
  </div>`;
}
