// The first screen: pictures, a name, a trigger and a preset become a run; beside them is the run that is on.
import { useEffect, useState } from "../vendor/hooks.mjs";
import { getState, html, setState, toast, useStore } from "../store.js";
import { post } from "../api.js";
import { changeForm, changeMore, getForm, question, settingsOf, spread, SUBJECTS, useForm } from "../form.js";
import { duration, number, said, settingName, t } from "../i18n.js";
import { lazy } from "../lazy.js";
import { activeJob, currentJob, takeOwnJob } from "../live.js";
import { Action, Choice, Field, Icon, isForeign, Problem, shortName, showSecondColumn, useSettled } from "./parts.js";
import { Pictures, uploadsEnded, useIsComing } from "./pictures.js";

let openedEarly = false;   // before its module had come
const Advanced = lazy(() => import("./advanced.js"), "Advanced",
  () => html`<details class="advanced"><summary onClick=${() => { openedEarly = !openedEarly; }}>${t("advanced.title")}</summary></details>`);
const wasOpened = () => {
  const opened = openedEarly;
  openedEarly = false;
  return opened;
};
const RunPanel = lazy(() => import("./run.js"), "RunPanel");
const PRESETS = ["quick", "balanced", "best"];

export function TrainScreen() {
  const shown = useStore(currentJob);
  return html`<div class="two-columns">
    <section class="card form" aria-labelledby="hl-train-title"><h1 id="hl-train-title">${t("train.title")}</h1><${TrainForm} /></section>
    <section class="card" aria-label=${t("nav.run")}>${shown ? html`<${RunPanel} id=${shown} key=${shown} />` : html`<${Nothing} />`}</section>
  </div>`;
}

function Nothing() {
  const known = useStore((s) => s.jobs !== null);
  if (!known) return html`<div class="empty quiet" aria-busy="true"></div>`;
  return html`<div class="empty"><${Icon} name="flame" /><h2>${t("train.nothing")}</h2>
    <ol class="steps"><li>${t("train.first")}</li><li>${t("train.second")}</li><li>${t("train.third")}</li></ol></div>`;
}

function TrainForm() {
  const form = useForm();
  const error = useStore((s) => s.trainError?.form === form && s.trainError.error);
  const plan = usePlan(form);
  const ownName = plan.told && !plan.of.name ? plan.told.name : "";
  const where = fieldOf(error, form);
  const status = useStore((s) => s.status);
  return html`<form onSubmit=${(event) => event.preventDefault()}>
    <${Pictures} error=${where === "folder" ? said(error.message) : ""} />
    <div class="pair">
      <${Field} label=${t("train.name")} hint=${form.name ? "" : ownName ? t("train.nameIs", { name: ownName }) : t("train.nameHint")}
        error=${where === "name" ? said(error.message) : ""}>
        ${(id, hint) => html`<input id=${id} aria-describedby=${hint} value=${form.name} autocomplete="off" spellcheck=${false}
          placeholder=${ownName || "my_face"} onInput=${(event) => changeForm({ name: event.target.value })} />`}
      <//>
      <${Field} label=${t("train.trigger")} hint=${isForeign(form.trigger) ? t("train.triggerForeign") : t("train.triggerHint")} error=${where === "trigger" ? said(error.message) : ""}>
        ${(id, hint) => html`<input id=${id} aria-describedby=${hint} value=${form.trigger} autocomplete="off" spellcheck=${false}
          placeholder="sks" onInput=${(event) => changeForm({ trigger: event.target.value })} />`}
      <//>
    </div>
    <${Choice} legend=${t("train.subject")} name="subject" value=${form.subject} options=${SUBJECTS.map((one) => [one, t(`subject.${one}`)])}
      hint=${subjectHint(form)} onChange=${(subject) => changeForm({ subject })} clearable />
    <${Choice} legend=${t("train.preset")} name="preset" value=${form.preset} options=${PRESETS.map((one) => [one, t(`preset.${one}`)])}
      hint=${t(`preset.${form.preset}.hint`)} onChange=${(preset) => changeForm({ preset })} />
    <${Base} value=${form.more.base_model} />
    <${Advanced} told=${plan.told} where=${where} wasOpened=${wasOpened} />
    <${Told} form=${form} plan=${plan} />
    <${Problem} error=${where ? null : error} onClose=${() => tellError(null)} />
    ${status && !status.can_train && status.reason && html`<p class="note"><${Icon} name="warn" />${said(status.reason)}</p>`}
    <div class="actions main-actions"><${TrainButton} /></div>
  </form>`;
}

// What will be drawn, word for word: prompts are English, as most checkpoints read no other language.
function subjectHint(form) {
  if (!form.subject) return t("subject.hint");
  if (form.more.preview_prompts?.length) return t("subject.ownPrompts");
  const prompts = settingsOf(form).preview_prompts;
  return prompts?.length ? t("subject.prompts", { prompts: prompts.map((one) => `“${one}”`).join(", ") }) : t("subject.noTrigger");
}

// The checkpoint to train on: chosen where the host offers several, told where it decides.
function Base({ value }) {
  const bases = useStore((s) => s.status?.bases);
  const loaded = useStore((s) => s.status?.base);
  if (!bases?.length) return loaded ? html`<p class="hint">${t("base.title", { name: loaded.name, family: loaded.family })}</p>` : null;
  const isGone = Boolean(value) && !bases.includes(value);
  if (bases.length === 1 && !isGone) return null;
  const standard = loaded && bases.includes(loaded.name) ? loaded.name : bases[0];
  return html`<${Field} label=${t("base.label")}>${(id) => html`<select id=${id} value=${value || standard}
    onChange=${(event) => changeMore("base_model", event.target.value)}>
    ${isGone && html`<option value=${value}>${t("base.gone", { name: shortName(value) })}</option>`}${bases.map((one) => html`<option value=${one}>${shortName(one)}</option>`)}</select>`}<//>`;
}

// What Train does is known to the page and not to the button alone: that is drawn anew when another screen or language is chosen meanwhile.
function TrainButton() {
  const busy = useStore((s) => Boolean(activeJob(s)));
  const stage = useStore((s) => s.trainStage);
  const label = busy ? t("train.queue") : t("train.start");
  return html`<${Action} kind="primary large" icon="play" label=${stage === "waits" ? t("train.waits") : label} disabled=${Boolean(stage)} run=${train} once
    onError=${tellError} />`;
}

async function train() {
  try {
    setState({ trainStage: getState().sending ? "waits" : "starts" });
    // all pictures that are on their way are there before a run reads the folder
    if (!(await uploadsEnded())) throw new Error(t("train.notAll"));
    setState({ trainStage: "starts" });
    await start(getForm());   // a new gallery comes into the form during its upload
  } finally {
    setState({ trainStage: null });
  }
}

async function start(wanted) {
  if (!wanted.folder.trim()) throw Object.assign(new Error(t("train.noFolder")), { field: "folder" });
  const { settings, steps } = await planned(wanted);
  const job = await post("jobs", { settings: spread(settings, steps), preset: wanted.preset });
  takeOwnJob(job);
  if (currentJob(getState()) === job.id) showSecondColumn();
  else toast(t("train.queued", { name: job.name }), { label: t("nav.runs"), run: () => { location.hash = "#/runs"; } });
  if (getForm().folder === wanted.folder) changeForm({ of: wanted.name.trim() });
}

// An error is about the form as it is, and over when that is another.
const tellError = (error) => setState({ trainError: error && { error, form: getForm() } });

async function planned(form) {
  const settings = settingsOf(form);
  const told = await post("jobs/plan", question(form));
  return { settings, steps: told.steps };
}

const NO_PLAN = { told: null, error: null };

// The plan for what is in the form, a moment after the last change; of another folder, and of one before pictures came, there is none.
function usePlan(form) {
  const now = JSON.stringify(question(form));
  const asked = useSettled(now);
  const isLost = useStore((s) => s.connection === "lost");
  const changes = useStore((s) => s.galleryChanges);
  const [plan, setPlan] = useState(NO_PLAN);
  useEffect(() => {
    const body = JSON.parse(asked);
    if (!body.settings.train_data_dir) {
      setPlan(NO_PLAN);
      return undefined;
    }
    const leave = new AbortController();
    const of = { ...body.settings, asked, changes };
    post("jobs/plan", body, { signal: leave.signal }).then(
      (told) => setPlan({ told, of, error: null }),
      // a server that is away says nothing about the form
      (error) => { if (error.status) setPlan({ told: null, of, error }); });
    return () => leave.abort();
  }, [asked, isLost, changes]);
  if (plan.of?.train_data_dir !== form.folder.trim() || (plan.error && plan.of.changes !== changes)) return NO_PLAN;
  return { ...plan, isOld: plan.of.asked !== now || plan.of.changes !== changes };
}

function Told({ form, plan }) {
  const isComing = useIsComing(form.folder);
  if (isComing) return html`<p class="told quiet" aria-busy="true">${t("plan.coming")}</p>`;
  if (!form.folder.trim()) return html`<p class="told quiet">${t("plan.noFolder")}</p>`;
  if (plan.error) return html`<p class="told wrong" role="status"><${Icon} name="warn" />${said(plan.error.message)}</p>`;
  if (!plan.told) return html`<p class="told quiet" aria-busy="true">${t("plan.reading")}</p>`;
  const { told } = plan;
  const settings = spread(settingsOf(form), told.steps);
  return html`<div class=${`told ${plan.isOld ? "old" : ""}`} role="status" aria-busy=${plan.isOld}>
    <p><strong>${planSentence(told, settings)}</strong><span>${moreOf(settings)}</span>${ofBase(told) && html`<span>${ofBase(told)}</span>`}</p>
    ${told.captions && html`<p class="note"><${Icon} name="wand" />${t("plan.captions", { n: told.captions.count, model: told.captions.model, into: told.captions.into })}</p>`}
    <${NothingToCallIt} form=${form} />
    ${(told.warnings ?? []).map((one) => html`<p class="warning"><${Icon} name="warn" />${said(one)}</p>`)}
  </div>`;
}

// Without captions and without a trigger word a run learns, but no prompt can ask for it.
function NothingToCallIt({ form }) {
  const gallery = useStore((s) => s.gallery);
  if (form.trigger.trim() || gallery?.folder !== form.folder.trim() || !gallery.pictures.length || gallery.pictures.some((one) => one.caption)) return null;
  return html`<p class="warning"><${Icon} name="warn" /><span>${t("plan.noTrigger")}
    ${" "}<button type="button" class="link" onClick=${() => changeForm({ trigger: "sks" })}>${t("plan.useTrigger", { word: "sks" })}</button></span></p>`;
}

export function planSentence(told, settings) {
  const parts = [t("plan.pictures", { n: told.pictures, shown: number(told.pictures) }), t("plan.steps", { n: told.steps, shown: number(told.steps) })];
  const every = Number(settings.preview_steps);
  const previews = every ? Math.floor(told.steps / every) * (settings.preview_prompts?.length || 1) : 0;
  if (told.seconds != null) parts.push(t("plan.time", { time: duration(Math.max(1, told.seconds + previews * (told.seconds_per_preview ?? 0))) }));
  if (told.memory) parts.push(told.memory_total ? t("plan.memory", { used: gigabytes(told.memory), total: gigabytes(told.memory_total) }) : t("plan.memoryAlone", { used: gigabytes(told.memory) }));
  return parts.join(t("comma"));
}

const gigabytes = (bytes) => (bytes / 1e9).toFixed(bytes >= 20e9 ? 0 : 1);

// A base that needs other settings than most has presets of its own: what those set besides the usual.
function ofBase({ filled = {} }) {
  const unusual = Object.entries(filled).filter(([name]) => !["lora_rank", "learning_rate"].includes(name));
  if (!unusual.length) return "";
  return t("plan.ofBase", { list: unusual.map(([name, value]) => `${settingName({ name })} ${value}`).join(t("comma")) });
}

function moreOf({ preview_steps, save_steps }) {
  const parts = [
    Number(preview_steps) ? t("plan.previews", { n: Number(preview_steps) }) : t("plan.noPreviews"),
    Number(save_steps) ? t("plan.saves", { n: Number(save_steps) }) : t("plan.noSaves"),
  ];
  return parts.join(t("comma"));
}

// Which field of the form an error is about: the server's sentences begin with the name of the setting.
function fieldOf(error, form) {
  if (error?.field) return error.field;
  if (!error?.status || error.status >= 500) return null;
  const setting = /^([a-z_]+) (?:is|has|must|runs)\b|^[a-z]+_[a-z_]+\b/.exec(error.message);
  if (setting) return { name: "name", trigger: "trigger", train_data_dir: "folder" }[setting[1] ?? setting[0]] ?? null;
  const { reg_data_dir: other } = form.more;   // folders of other settings are told of in the same words
  if (other && error.message.includes(other)) return null;
  const folder = form.folder.trim().replace(/[\\/]+$/, "");
  return (folder ? error.message.includes(folder) : /\bgallery\b/i.test(error.message)) ? "folder" : null;
}
