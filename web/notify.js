// Telling that a run has ended: on the page, and by the browser where the user has allowed it.
import { said, t } from "./i18n.js";
import { toast } from "./store.js";

export const canAskToNotify = () => "Notification" in window && Notification.permission === "default" && window.isSecureContext;

export const askToNotify = () => Notification.requestPermission();

export function notifyEnd(job) {
  const text = t(`ended.${job.status === "stopped" && !job.step ? "unlearned" : job.status}`, { name: job.name });
  toast(text);
  if (!("Notification" in window) || Notification.permission !== "granted" || document.visibilityState === "visible") return;
  try {
    new Notification(text, { body: said(job.message), tag: job.id });
  } catch { /* some browsers allow it in service workers only */ }
}
