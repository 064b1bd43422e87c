// The loss of one or more runs over their steps, smoothed; a zoom stays while data arrives.
import { useEffect, useRef, useState } from "../vendor/hooks.mjs";
import { html } from "../store.js";
import { curveOf, loadCurve, onCurves, smooth } from "../curves.js";
import { addStyle } from "../lazy.js";
import { t } from "../i18n.js";

const KEPT = "hotlora.smoothing";
const STEPS = [1, 2, 5].flatMap((n) => [1, 10, 100, 1e3, 1e4, 1e5, 1e6].map((tens) => n * tens)).sort((a, b) => a - b);   // no half steps
const COLOURS = ["--curve-1", "--curve-2"];

const TOLD = 1000;   // ms between two descriptions of a curve that grows

let uPlot = null;
const loadPlot = async () => { uPlot = (await import("../vendor/uplot.mjs")).default; };
addStyle(new URL("../vendor/uplot.css", import.meta.url).href);

// `runs` are [{id, name}]; the first one's unsmoothed curve is drawn too, and of a single run what was `measured`, [{step, held_out, drift}]:
// the loss on held-out pictures as percent above or below the base's, and how far prompts without the trigger have moved, on a scale of its own.
export function LossChart({ runs, height = 190 }) {
  const box = useRef(null);
  const [amount, setAmount] = useState(readAmount);
  const [zoomed, setZoomed] = useState(false);
  const [drawable, setDrawable] = useState(uPlot !== null);
  const chart = useRef(null);
  const ids = runs.map((run) => run.id).join();
  const smoothing = useRef(amount);
  smoothing.current = amount;
  const latest = useRef(runs);
  latest.current = runs;
  const draws = useRef(null);
  const measures = `${hasHeldOut(runs)} ${hasDrift(runs)}`;

  useEffect(() => {
    for (const run of runs) if (!curveOf(run.id)) loadCurve(run.id).catch(() => {});
  }, [ids]);

  useEffect(() => {
    if (!drawable) loadPlot().then(() => setDrawable(true), () => {});   // the numbers are on the page without it
  }, []);

  useEffect(() => {
    if (!drawable) return undefined;
    const element = box.current;
    let describing = 0;
    setZoomed(false);
    const draw = () => {
      const data = dataOf(latest.current, smoothing.current);
      describing ||= setTimeout(() => {
        describing = 0;
        element.setAttribute("aria-label", describe(latest.current));
      }, TOLD);
      if (!chart.current) {
        if (data[0].length > 1) chart.current = makeChart(element, latest.current, data, height, setZoomed);
        return;
      }
      const stays = chart.current.zoomed;
      chart.current.plot.setData(data, !stays);
      if (stays) chart.current.plot.redraw();
    };
    draw();
    draws.current = draw;
    const leave = onCurves(draw);
    const resized = new ResizeObserver(() => chart.current?.plot.setSize({ width: element.clientWidth, height }));
    resized.observe(element);
    const recoloured = watchTheme(() => {
      chart.current?.plot.destroy();
      chart.current = null;
      setZoomed(false);
      draw();
    });
    return () => {
      draws.current = null;
      leave();
      clearTimeout(describing);
      resized.disconnect();
      recoloured();
      chart.current?.plot.destroy();
      chart.current = null;
    };
  }, [ids, height, drawable, measures]);

  useEffect(() => draws.current?.(), [amount]);

  const changed = (event) => {
    const value = Number(event.target.value);
    setAmount(value);
    try {
      localStorage.setItem(KEPT, String(value));
    } catch { /* it holds until the page is closed */ }
  };
  const reset = () => {
    chart.current.zoomed = false;
    setZoomed(false);
    chart.current.plot.setData(dataOf(runs, amount), true);
  };
  return html`<figure class="loss">
    <figcaption><span>${t("loss.title")}</span>
      ${zoomed && html`<button type="button" class="link" onClick=${reset}>${t("loss.reset")}</button>`}
      <label class="smoothing">${t("loss.smoothing")}
        <input type="range" min="0" max="0.99" step="0.01" value=${amount} onInput=${changed} /></label></figcaption>
    <div class="plot" ref=${box} style=${{ minHeight: `${height}px` }} role="img" aria-label=${describe(runs)}></div>
  </figure>`;
}

function readAmount() {
  try {
    const kept = Number(localStorage.getItem(KEPT) ?? 0.9);
    return kept >= 0 && kept < 1 ? kept : 0.9;
  } catch {
    return 0.9;
  }
}

// What a screen reader says of the picture: where each curve begins and where it is now.
function describe(runs) {
  const parts = runs.map((run) => {
    const curve = curveOf(run.id);
    if (!curve?.losses.length) return t("loss.none", { name: run.name });
    const line = smooth(curve.losses, 0.9);
    return t("loss.described", { name: run.name, first: short(line[Math.min(9, line.length - 1)]), last: short(line.at(-1)), step: curve.steps.at(-1) });
  });
  const [heldOut, drift] = [lastOf(runs, "held_out"), lastOf(runs, "drift")];
  if (heldOut) parts.push(t("loss.heldOutNow", { share: percent(100 * heldOut.held_out), step: heldOut.step }));
  if (drift) parts.push(t("loss.driftNow", { drift: short(drift.drift), step: drift.step }));
  return parts.join(" ");
}

// The newest measurement that is a number: a run that diverges has some that are none, which are null here and gaps in the picture.
const lastOf = (runs, what) => (runs.length === 1 ? runs[0].measured?.filter((one) => Number.isFinite(one[what])).at(-1) : undefined);
const hasDrift = (runs) => Boolean(lastOf(runs, "drift"));
const hasHeldOut = (runs) => Boolean(lastOf(runs, "held_out"));

function dataOf(runs, amount) {
  const tables = runs.map((run, i) => {
    const curve = curveOf(run.id) ?? { steps: [], losses: [] };
    const line = smooth(curve.losses, amount);
    return i === 0 ? [curve.steps, curve.losses, line] : [curve.steps, line];
  });
  if (hasHeldOut(runs)) {
    tables.push([runs[0].measured.map((one) => one.step), runs[0].measured.map((one) => (one.held_out === null ? null : 100 * one.held_out))]);
  }
  if (hasDrift(runs)) tables.push([runs[0].measured.map((one) => one.step), runs[0].measured.map((one) => one.drift)]);
  return tables.length === 1 ? tables[0].map((column) => column.slice()) : uPlot.join(tables);
}

function makeChart(element, runs, data, height, setZoomed) {
  const made = { plot: null, zoomed: false };
  const colour = (name) => resolved(element, name);
  const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const series = [{ label: t("loss.step") }];
  runs.forEach((run, i) => {
    const stroke = colour(COLOURS[i % 2]);
    if (i === 0) series.push({ label: t("loss.raw"), stroke: colour("--curve-faint"), width: 1, value: (_, v) => short(v), points: { show: false } });
    series.push({ label: runs.length > 1 ? run.name : t("loss.smoothed"), stroke, width: 2, value: (_, v) => short(v), points: { show: false }, spanGaps: true });
  });
  const axes = [{ ...axis, size: 26, incrs: STEPS }, { ...axis, size: 46, values: (_, ticks) => ticks.map((v) => +v.toPrecision(3)) }];
  if (hasHeldOut(runs)) {
    series.push({ label: t("loss.heldOut"), scale: "share", stroke: colour("--curve-2"), width: 2, value: (_, v) => (v == null ? "–" : percent(v)),
      points: { show: true, size: 5, fill: colour("--curve-2") } });
    axes.push({ ...axis, scale: "share", side: 1, size: 52, grid: { show: false }, values: (_, ticks) => ticks.map(percent) });
  }
  if (hasDrift(runs)) {
    series.push({ label: t("loss.drift"), scale: "drift", stroke: colour("--muted"), width: 1, dash: [4, 3], value: (_, v) => short(v),
      points: { show: true, size: 4, fill: colour("--muted") } });
  }
  made.plot = new uPlot({
    width: element.clientWidth || 400, height, series,
    legend: { live: true },
    cursor: { drag: { x: true, y: false } },
    scales: { x: { time: false } },
    axes,
    hooks: {
      setSelect: [(plot) => {
        if (plot.select.width > 0) {
          made.zoomed = true;
          setZoomed(true);
        }
      }],
    },
  }, data, element);
  made.plot.over.addEventListener("dblclick", () => {
    made.zoomed = false;
    setZoomed(false);
  });
  return made;
}

const short = (value) => (value == null ? "–" : value.toPrecision(3));
const percent = (value) => `${value > 0 ? "+" : ""}${+value.toPrecision(2)}%`;

// A canvas takes no custom property: what it comes to here and now.
function resolved(element, name) {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  element.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}

// The colours of a canvas do not follow a theme by themselves.
function watchTheme(changed) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", changed);
  const watch = new MutationObserver(changed);
  for (const element of document.querySelectorAll(":root, .hotlora")) watch.observe(element, { attributes: true, attributeFilter: ["data-theme"] });
  return () => {
    system.removeEventListener("change", changed);
    watch.disconnect();
  };
}
