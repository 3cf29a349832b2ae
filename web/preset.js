// Nodes 2.0 of ComfyUI 0.20 shows the first preset when a workflow opens, though the node holds the saved one: show that.
import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "shortcut.preset",
  loadedGraphNode(node) {
    if (node.comfyClass !== "ShortcutSampler") return;
    const preset = node.widgets.find((widget) => widget.name === "preset");
    if (preset._state) preset._state.value = preset.value;
  },
});
