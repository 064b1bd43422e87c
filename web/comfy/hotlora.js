// What the page of ComfyUI shows beside the nodes: unfinished runs when it opens, the report of a gallery, the tag of a LoRA.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const TEXT = {
  en: {
    title: "HotLoRA: unfinished training",
    detail: (run) => `${run.name} stopped after step ${run.step}. Run its graph again with the same settings to go on.`,
  },
  zh: {
    title: "HotLoRA：未完成的训练",
    detail: (run) => `${run.name} 停在第 ${run.step} 步。用同样的设置再运行一次工作流即可继续。`,
  },
};

function words() {
  const language = app.extensionManager?.setting?.get?.("Comfy.Locale") ?? navigator.language;
  return String(language).startsWith("zh") ? TEXT.zh : TEXT.en;
}

function showText(node, lines) {
  const shown = (lines ?? []).join("\n");
  let widget = node.widgets?.find((one) => one.name === "hotlora_text");
  if (!widget) {
    const box = document.createElement("textarea");
    box.readOnly = true;
    box.rows = 5;
    Object.assign(box.style, { width: "100%", resize: "none", fontSize: "11px", background: "transparent", color: "inherit", border: "0" });
    widget = node.addDOMWidget("hotlora_text", "text", box, { serialize: false, getValue: () => box.value, setValue: (v) => { box.value = v; } });
  }
  widget.value = shown;
  app.graph.setDirtyCanvas(true);
}

app.registerExtension({
  name: "HotLoRA",
  async setup() {
    const answer = await api.fetchApi("/hotlora/unfinished");
    if (!answer.ok) return;
    const text = words();
    for (const run of (await answer.json()).slice(0, 3)) {
      app.extensionManager.toast.add({ severity: "info", summary: text.title, detail: text.detail(run), life: 15000 });
    }
  },
  nodeCreated(node) {
    if (!["HotLoRAGallery", "HotLoRATrain"].includes(node.comfyClass)) return;
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.apply(this, arguments);
      if (output?.text) showText(this, output.text);
    };
  },
});
