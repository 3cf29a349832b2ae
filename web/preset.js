// While a preset is chosen, the widgets that it decides are grey and cannot be turned: what they hold is not read.
// A DynamicCombo would hide them, but it needs another node: saved workflows hold widgets by their position.
import { app } from "../../scripts/app.js";

const NODE = "ShortcutMaskedSampler";
const PRESET = "preset";
const CUSTOM = "custom";
const READ = [PRESET, "seed", "control_after_generate", "denoise"]; // with any preset

function update(node) {
  const preset = node.widgets.find((widget) => widget.name === PRESET);
  const isLinked = node.inputs?.some((input) => input.widget?.name === PRESET && input.link != null);
  for (const widget of node.widgets) {
    if (!READ.includes(widget.name)) widget.disabled = preset.value !== CUSTOM && !isLinked;
  }
  app.canvas?.setDirty(true, true);
}

function after(owner, name, act) {
  const before = owner[name];
  owner[name] = function (...given) {
    const result = before?.apply(this, given);
    act();
    return result;
  };
}

app.registerExtension({
  name: "shortcut.preset",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const preset = node.widgets?.find((widget) => widget.name === PRESET);
    if (!preset) return;
    after(preset, "callback", () => update(node));
    after(node, "onConfigure", () => update(node)); // saved values are set by then
    after(node, "onConnectionsChange", () => update(node));
    update(node);
  },
});
