// What the server has and what happens there: read once, then followed by its events, also over a lost connection.
import { address, ApiError, get, jobPath, lastEventOf } from "./api.js";
import { addLosses, reloadCurves } from "./curves.js";
import { galleryChanged, reloadGallery } from "./gallery_data.js";
import { getState, setState } from "./store.js";

const RETRY = 1500;
export const ACTIVE = ["preparing", "running", "paused"];
export const ENDED = ["completed", "stopped", "failed", "interrupted", "cancelled"];
const LOG_LINES = 500;
const REST_AFTER = 60_000;   // ms out of sight
const REST_AFTER_ADDED = 500;
const OWN = "hotlora.own";

let source = null;
let timer = 0;

export async function start(early) {
  clearTimeout(timer);
  source?.close();
  try {
    await loadAll(early);
  } catch (error) {
    lost(error);
    return;
  }
  if (!isResting) connect();
}

async function loadAll(early) {
  const [status, snapshot] = await Promise.all(["status", "jobs"].map(async (path) => (await early?.[path]) ?? get(path)));
  takeSnapshot(snapshot);
  setState({ status, connection: "open" });
  // what only part of the page needs may fail without the rest
  const [settings] = await Promise.all([
    allSettings(), refreshGalleries(), refreshLoras(), refreshDetails(), reloadCurves(), readAgain(),
  ]);
  setState({ settings });
}

let wasRead = false;

// What happened while there was no connection was told to nobody: the gallery that is open, drawings, captions and logs. Drawings and
// captioning must be there before events go on, or an old answer would take the place of a new event.
function readAgain() {
  const isFirst = !wasRead;
  wasRead = true;
  if (isFirst) return null;
  reloadGallery();
  Object.keys(getState().logs).forEach((id) => loadLog(id).catch(() => {}));
  return Promise.allSettled([
    get("gallery/captioning").then(takeCaptioning),
    getState().drawings && get("drawings").then(({ drawings }) => setState({ drawings })),
  ]);
}

// What the server says of its settings, also while the page is still loading.
export async function allSettings() {
  return getState().settings.length ? getState().settings : (await get("settings")).settings;
}

let lastEvent = 0;
const told = new Map();   // the newest event about each job, about each drawing and about the captions

// An answer may come after the events that overtook it: what these have told stays.
const isOvertaken = (about, answer) => (told.get(about) ?? 0) > lastEventOf(answer);

function takeSnapshot(snapshot) {
  lastEvent = snapshot.last_event ?? 0;
  told.clear();
  setState({ jobs: snapshot.jobs, queue: snapshot.queue ?? [], waiting: Boolean(snapshot.waiting) });
}

function connect() {
  source?.close();   // of a start that was on its way when the tab came back into sight
  source = new EventSource(address("events", { after: lastEvent }));
  for (const kind of Object.keys(TAKE)) {
    source.addEventListener(kind, (message) => {
      const event = JSON.parse(message.data);
      lastEvent = Math.max(lastEvent, event.id);
      told.set(event.job ?? event.state?.id ?? kind, event.id);
      TAKE[kind](event);
    });
  }
  source.onerror = () => lost();
}

// Whatever the cause, begin again from a fresh reading: the server may be another one by now.
function lost(error) {
  source?.close();
  source = null;
  setState({ connection: "lost", problem: error instanceof ApiError && error.status ? error : null });
  clearTimeout(timer);
  if (!isResting) timer = setTimeout(() => start(), RETRY);
}

// The checkpoint is the host's to change: looked at again when a run begins and when the user comes back.
async function refreshStatus() {
  try {
    setState({ status: await get("status") });
  } catch { /* the events tell of a server that is away */ }
}

// A browser lets all tabs together have six connections to a server, so a tab that nobody looks at gives its own back. While a run that was
// started in it is not over it stays, as the end is to be told.
let isResting = false;
let resting = 0;

function restLater() {
  clearTimeout(resting);
  if (document.visibilityState === "hidden") resting = setTimeout(rest, REST_AFTER);
}

function rest() {
  if (ownJobs().some((id) => getState().jobs?.some((job) => job.id === id && !ENDED.includes(job.status)))) {
    restLater();
    return;
  }
  isResting = true;
  clearTimeout(timer);
  source?.close();
  source = null;
}

document.addEventListener("visibilitychange", () => {
  restLater();
  if (document.visibilityState !== "visible") return;
  if (isResting) {
    isResting = false;
    start();
    setState((s) => ({ galleryChanges: s.galleryChanges + 1 }));
  } else if (getState().connection === "open") {
    refreshStatus();
  }
});
restLater();

function ownJobs() {
  try {
    return JSON.parse(sessionStorage.getItem(OWN) ?? "[]");
  } catch {
    return [];
  }
}

// A job that was started, or set going again, in this tab.
export function takeOwnJob(job) {
  try {
    sessionStorage.setItem(OWN, JSON.stringify([job.id, ...ownJobs().filter((id) => id !== job.id)].slice(0, 50)));
  } catch { /* private mode: its end is told while the tab is in sight */ }
  takeJob(job);
}

export async function refreshGalleries() {
  try {
    setState({ galleries: (await get("galleries")).galleries });
  } catch { /* the list is a convenience */ }
}

export async function refreshLoras() {
  try {
    setState({ loras: (await get("loras")).loras });
  } catch { /* shown as unknown */ }
}

// What a run has trained, by what its file is called now: a later run of its name takes that. `one` is its entry in the list; `replaced` says that
// the name is another run's, written later, and nothing of this one is left. A run of an earlier version is known by the name alone.
export function loraOf(job, loras) {
  const name = job.lora ?? job.saved?.at(-1)?.name;
  const own = (loras ?? []).filter((one) => (job.run ? one.run === job.run : one.job === job.id));
  const one = own.find(({ finished, name: called }) => finished && !/-last(-v\d+)?$/.test(called)) ?? own[0];
  if (one && job.run) return { name: one.tag.replace(/^<lora:(.*):1>$/, "$1"), one };
  return { name, one, replaced: Boolean(job.run && name && loras?.some((other) => other.name === name && other.created > (job.ended ?? Infinity))) };
}

// What was logged before this page was opened is asked for when somebody looks; of lines that came as events meanwhile only later ones are added.
export async function loadLog(id) {
  const { lines } = await get(jobPath(id, "/log"), { lines: LOG_LINES });
  const newest = lines.at(-1)?.id ?? 0;
  setState((s) => ({ logs: { ...s.logs, [id]: [...lines, ...(s.logs[id] ?? []).filter((one) => one.id > newest)].slice(-LOG_LINES) } }));
}

const refreshDetails = () => Promise.allSettled(Object.keys(getState().details).map(loadJob));

export async function loadJob(id) {
  const job = await get(jobPath(id));
  takeJob(job);
  return job;
}

const early = new Map();   // previews that were told of before their job was read

// A whole job, as the server answers with: its long parts are kept apart from its state.
export function takeJob(job) {
  const { settings, previews, details, ...answered } = job;
  const known = getState().jobs?.find((one) => one.id === job.id);
  const short = known && isOvertaken(job.id, job) ? known : answered;
  const all = withPreviews(previews ?? [], early.get(short.id) ?? []);
  early.delete(short.id);
  setState((s) => ({ details: { ...s.details, [short.id]: { ...short, settings, previews: all, details } } }));
  patchJob(short.id, short);
}

function withPreviews(known, added) {
  const files = new Set(added.map((one) => one.file));
  return [...known.filter((one) => !files.has(one.file)), ...added];
}

export const activeJob = (state) => state.jobs?.find((job) => ACTIVE.includes(job.status)) ?? null;

// What runs, or else what ran last.
export const currentJob = (state) => (activeJob(state) ?? state.jobs?.find((job) => job.status !== "cancelled"))?.id ?? null;

export function patchJob(id, patch) {
  setState((s) => {
    const jobs = s.jobs ?? [];
    return { jobs: jobs.some((job) => job.id === id) ? jobs.map((job) => (job.id === id ? { ...job, ...patch } : job)) : [{ id, ...patch }, ...jobs] };
  });
}

export function takeDrawing(drawing) {
  setState((s) => {
    const known = s.drawings ?? [];
    if (isOvertaken(drawing.id, drawing)) return {};
    return { drawings: known.some((one) => one.id === drawing.id) ? known.map((one) => (one.id === drawing.id ? drawing : one)) : [drawing, ...known] };
  });
}

const TAKE = {
  job(event) {
    if (event.removed) {
      const id = event.id_of_job ?? event.job;
      setState((s) => ({ jobs: (s.jobs ?? []).filter((job) => job.id !== id) }));
      return;
    }
    const before = getState().jobs?.find((job) => job.id === event.job);
    patchJob(event.job, event.state);
    setState({ queue: event.queue ?? getState().queue, waiting: event.waiting ?? getState().waiting });
    if (before?.status !== event.state.status) refreshStatus();
    if (before && ACTIVE.includes(before.status) && ENDED.includes(event.state.status)) {
      if (getState().details[event.job]) loadJob(event.job).catch(() => {});
      import("./notify.js").then(({ notifyEnd }) => notifyEnd(event.state));
    }
  },
  step(event) {
    const { step, total_steps, loss, seconds_left } = event;
    patchJob(event.job, { step, total_steps, loss, seconds_left });
    if (!event.thinned) addLosses(event.job, event.losses ?? [[step, loss]]);
  },
  saved(event) {
    const job = getState().jobs?.find((one) => one.id === event.job);
    if (!job) return;
    const saved = (job.saved ?? []).filter((entry) => entry.name !== event.name);
    patchJob(event.job, { saved: [...saved, { step: event.step, name: event.name, tag: `<lora:${event.name}:1>` }], lora: event.name });
  },
  measured({ job, step, held_out, drift }) {
    const before = getState().jobs?.find((one) => one.id === job)?.measured ?? [];
    patchJob(job, { measured: [...before.filter((one) => one.step < step), { step, held_out, drift }] });
  },
  preview(event) {
    const whole = getState().details[event.job];
    if (!whole) early.set(event.job, withPreviews(early.get(event.job) ?? [], event.previews));
    else setState((s) => ({ details: { ...s.details, [event.job]: { ...whole, previews: withPreviews(whole.previews, event.previews) } } }));
  },
  log(event) {
    setState((s) => ({ logs: { ...s.logs, [event.job]: [...(s.logs[event.job] ?? []), { id: event.id, time: event.time, text: event.text }].slice(-LOG_LINES) } }));
  },
  drawing: (event) => takeDrawing(event.state),
  captioning: (event) => setState({ captioning: event.state }),
  loras: () => refreshLoras(),
  gallery(event) {
    if (event.added) {
      takeAdded(event);
      return;
    }
    galleryChanged(event);
    setState((s) => ({ galleryChanges: s.galleryChanges + 1 }));
    if (!event.captions && !event.left_out) refreshGalleries();
  },
};

const adding = new Map();   // folder -> timer

// Pictures are added one after the other; what follows from it is done once, when no more of them come.
function takeAdded({ folder }) {
  clearTimeout(adding.get(folder));
  adding.set(folder, setTimeout(() => TAKE.gallery({ folder }), REST_AFTER_ADDED));
}

export function takeCaptioning(state) {
  if (!isOvertaken("captioning", state)) setState({ captioning: state });
}
