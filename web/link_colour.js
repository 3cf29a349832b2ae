// The colour of links that carry a shortcut head: ComfyUI has none for types of packs, and no other way to set one.
import { app } from "../../scripts/app.js";

const TYPE = "SHORTCUT_HEAD";
const COLOUR = "#e0a030";

function paint() {
  window.LGraphCanvas.link_type_colors[TYPE] = COLOUR;
  app.canvas.default_connection_color_byType[TYPE] = COLOUR;
  app.canvas.setDirty(true, true);
}

app.registerExtension({
  name: "shortcut.linkColour",
  setup: paint,
  afterConfigureGraph: paint, // a palette that was loaded meanwhile has its own table
});
