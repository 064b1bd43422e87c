// What the page of ComfyUI shows beside the nodes: unfinished runs when it opens, the report of a gallery, the tag of a LoRA.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const TEXT = {
  en: {
    tab: "Train a LoRA",
    large: "Open large",
    close: "Close",
    title: "HotLoRA: unfinished training",
    detail: (run) => `${run.name} stopped after step ${run.step}. Run its graph again with the same settings to go on.`,
  },
  zh: {
    tab: "训练 LoRA",
    large: "放大",
    close: "关闭",
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

// The page itself: one frame, which moves from the sidebar into a large dialog and back by being shown anew in the other place.
function pageFrame() {
  const frame = document.createElement("iframe");
  frame.src = api.fileURL("/hotlora/");
  frame.title = "HotLoRA";
  frame.allow = "clipboard-write";
  Object.assign(frame.style, { display: "block", flex: "1", width: "100%", minHeight: "0", border: "0" });
  return frame;
}

function openLarge(close) {
  const dialog = document.createElement("dialog");
  Object.assign(dialog.style, { width: "96vw", height: "94vh", maxWidth: "none", maxHeight: "none", padding: "0", border: "1px solid #8888", borderRadius: "12px", overflow: "hidden", background: "var(--comfy-menu-bg, #222)" });
  const column = document.createElement("div");
  Object.assign(column.style, { display: "flex", flexDirection: "column", height: "100%" });
  column.append(bar(words().close, () => dialog.close()), pageFrame());
  dialog.append(column);
  dialog.addEventListener("close", () => {
    dialog.remove();
    close();
  });
  document.body.append(dialog);
  dialog.showModal();
}

function bar(label, act) {
  const row = document.createElement("div");
  Object.assign(row.style, { display: "flex", justifyContent: "flex-end", padding: "4px 8px", background: "var(--comfy-menu-bg, #222)" });
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = label;
  Object.assign(button.style, { padding: "3px 12px", border: "1px solid var(--border-color, #8888)", borderRadius: "6px", background: "transparent", color: "var(--fg-color, inherit)", cursor: "pointer", font: "13px system-ui, sans-serif" });
  button.addEventListener("click", act);
  row.append(button);
  return row;
}

function showPage(element) {
  const fill = () => element.replaceChildren(bar(words().large, () => {
    element.replaceChildren();
    openLarge(fill);
  }), pageFrame());
  Object.assign(element.style, { display: "flex", flexDirection: "column", height: "100%" });
  fill();
}

app.registerExtension({
  name: "HotLoRA",
  async setup() {
    app.extensionManager.registerSidebarTab({
      id: "hotlora", icon: "pi pi-bolt", title: "HotLoRA", tooltip: words().tab, type: "custom", render: showPage,
      destroy: () => {},
    });
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
