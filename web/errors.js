// Says in the language of the page what an error of our nodes is about, where locales/ knows its head.
// The whole text is in English, and ComfyUI shows it by itself.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const OURS = "Shortcut"; // begins the ids of our nodes
const ANYTHING = "..."; // in a head

function pattern(head) {
  const parts = head.split(ANYTHING).map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return new RegExp(parts.join(".*?"), "s");
}

async function explain({ detail: error }) {
  if (!error.node_type.startsWith(OURS)) return;
  const language = app.extensionManager.setting.get("Comfy.Locale");
  const texts = await (await api.fetchApi("/i18n")).json();
  const heads = Object.entries(texts[language]?.shortcutErrors ?? {});
  const found = heads.find(([head]) => pattern(head).test(error.exception_message));
  if (!found) return;
  const summary = texts[language].nodeDefs?.[error.node_type]?.display_name ?? error.node_type;
  app.extensionManager.toast.add({ severity: "error", summary, detail: found[1], life: 20000 });
}

app.registerExtension({
  name: "shortcut.errors",
  setup: () => api.addEventListener("execution_error", explain),
});
