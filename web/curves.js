// Loss curves by job. They grow with every step, so they live outside of the page's state and are changed in place.
import { get, jobPath } from "./api.js";

const POINTS = 4000;
const curves = new Map();
const listeners = new Set();
let frame = 0;

export const curveOf = (id) => curves.get(id) ?? null;

export function onCurves(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function tell() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    for (const listener of listeners) listener();
  });
}

export async function loadCurve(id) {
  const curve = curves.get(id) ?? { steps: [], losses: [], late: [] };
  curve.loading = true;
  curves.set(id, curve);
  try {
    const pairs = (await get(jobPath(id, "/losses"), { points: POINTS / 2 })).losses;
    curve.steps = pairs.map((pair) => pair[0]);
    curve.losses = pairs.map((pair) => pair[1]);
  } finally {
    curve.loading = false;
    addLosses(id, curve.late.splice(0));
    tell();
  }
}

export const reloadCurves = () => Promise.allSettled([...curves.keys()].map(loadCurve));

export function addLosses(id, pairs) {
  const curve = curves.get(id);
  if (!curve) return;
  if (curve.loading) {
    curve.late.push(...pairs);
    return;
  }
  for (const [step, loss] of pairs) {
    // a run that went on from a saved state does some steps again
    while (curve.steps.length && curve.steps.at(-1) >= step) {
      curve.steps.pop();
      curve.losses.pop();
    }
    curve.steps.push(step);
    curve.losses.push(loss);
  }
  if (curve.steps.length > POINTS) halve(curve);
  tell();
}

function halve(curve) {
  const steps = [];
  const losses = [];
  for (let i = 0; i + 1 < curve.steps.length; i += 2) {
    steps.push(curve.steps[i + 1]);
    losses.push((curve.losses[i] + curve.losses[i + 1]) / 2);
  }
  Object.assign(curve, { steps, losses });
}

// Exponential moving average without the pull towards zero at the start; 0 leaves the curve as it is.
export function smooth(losses, amount) {
  let mean = 0;
  let weight = 0;
  return losses.map((loss) => {
    if (!Number.isFinite(loss)) return null;
    mean = amount * mean + (1 - amount) * loss;
    weight = amount * weight + (1 - amount);
    return mean / weight;
  });
}
