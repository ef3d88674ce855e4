"use strict";
const by = (id) => document.getElementById(id);
const read = (id) => JSON.parse(by(id).textContent);

// Tables: a click or Enter on a header sorts, numbers from the largest; what is missing stays last.
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const header = button.closest("th"), body = button.closest("table").tBodies[0];
    const value = (row) => row.cells[header.cellIndex].dataset.value;
    const rows = [...body.rows], numbers = rows.every((row) => value(row) === "" || isFinite(value(row)));
    const was = header.ariaSort ?? (numbers ? "ascending" : "descending");
    const down = was === "ascending", sign = down ? -1 : 1;
    for (const other of header.parentNode.cells) other.ariaSort = null;
    header.ariaSort = down ? "descending" : "ascending";
    const compare = numbers ? (a, b) => a - b : (a, b) => a.localeCompare(b, undefined, {numeric: true});
    rows.sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      return a === "" || b === "" ? (a === "") - (b === "") : sign * compare(a, b);
    });
    body.append(...rows);
  });
}
for (const button of document.querySelectorAll("[data-legend]")) {
  const hide = () => { by("legend").hidden = true; };
  const show = () => {
    const legend = by("legend"), place = button.getBoundingClientRect();
    legend.textContent = button.dataset.legend;
    legend.hidden = false;
    legend.style.left = `${Math.max(0, Math.min(place.left, innerWidth - legend.offsetWidth - 20))}px`;
    legend.style.top = `${Math.min(place.bottom + 6, Math.max(0, innerHeight - legend.offsetHeight - 6))}px`;
  };
  for (const event of ["pointerenter", "focus"]) button.addEventListener(event, show);
  for (const event of ["pointerleave", "blur"]) button.addEventListener(event, hide);
  button.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
}


// The explorer: both planes draw columns of one source, so that Bokeh selects the same images in both.
function explore(drawn, {points, planes, columns}) {
  const numbers = ({bits, base64}) => {
    const {buffer} = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
    return bits === 16 ? new Uint16Array(buffer) : new Uint32Array(buffer);
  };
  const labels = numbers(points.labels), indices = numbers(points.indices);
  const classes = points.classes.map((each) => each.name), name = (image) => classes[labels[image]];
  const [source, rings, filter] = ["points", "rings", "classes"].map((each) => drawn.get_model_by_name(each));
  const chosen = [];  // of each side: the plane's name, coordinates x and y, and near, the nearest images of each
  let current = null;

  function choose(side, plane) {
    const steps = numbers(plane.xy), near = numbers(plane.near), k = near.length / labels.length;
    chosen[side] = {name: plane.name, near: (image) => [...near.subarray(k * image, k * (image + 1))],
                    x: Float32Array.from(labels, (_, image) => steps[2 * image] / 65535),
                    y: Float32Array.from(labels, (_, image) => steps[2 * image + 1] / 65535)};
    by(`remark${side}`).textContent = plane.remark;
    const chart = drawn.get_model_by_name(`plane${side}`);
    for (const range of [chart.x_range, chart.y_range]) range.setv({start: -0.03, end: 1.03});
    if (chosen.length < 2) return;
    source.data = {...columnsOf([...labels.keys()]), class: Array.from(labels, (label) => classes[label])};
    if (current !== null) show(current);
  }
  const columnsOf = (images) => Object.fromEntries([0, 1].flatMap((side) => ["x", "y"].map((axis) =>
    [axis + side, images.map((image) => chosen[side][axis][image])])));

  const make = (tag, properties, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const tile = (image, size) => {
    const made = make("span", {className: "tile", role: "img", ariaLabel: name(image)});
    const place = {size: `${size}rem`, column: image % columns, line: Math.floor(image / columns)};
    for (const [key, value] of Object.entries(place)) made.style.setProperty(`--${key}`, value);
    return made;
  };

  function show(image) {
    current = image;
    const near = chosen.map((each) => each.near(image)), shared = near[0].filter((each) => near[1].includes(each));
    const button = (each) => make("button", {
      type: "button", title: `${name(each)}, ${points.kind} ${indices[each]}`, onclick: () => show(each),
      className: shared.includes(each) ? "both" : "",
    }, tile(each, 2.65), name(each));
    const told = [`${points.kind} ${indices[image]}`, `${shared.length} of ${near[0].length} nearest in both`];
    by("picture").replaceChildren(
      make("div", {}, tile(image, 7), make("strong", {}, name(image)), ...told.map((text) => make("small", {}, text))),
      ...near.map((images, side) => make("div", {}, `${"○□"[side]} Nearest in ${chosen[side].name}`,
        make("div", {className: "row"}, ...images.map(button)))));
    const marked = [image, ...near[0], ...near[1]];
    const marker = marked.map((_, place) => (place <= near[0].length ? "circle" : "square"));
    rings.data = {...columnsOf(marked), marker, size: marked.map((_, place) => (place ? 14 : 24))};
  }

  const boxes = [...by("classes").querySelectorAll("input")];
  function filterClasses() {
    const seen = boxes.map((box) => box.checked);
    filter.booleans = Array.from(labels, (label) => seen[label]);
    tell();
  }
  const selected = () => source.selected.indices.filter((image) => boxes[labels[image]].checked);
  function tell() {
    const counts = new Map();
    for (const image of selected()) counts.set(name(image), (counts.get(name(image)) ?? 0) + 1);
    const total = selected().length, parts = [...counts].sort((a, b) => b[1] - a[1]).map(([each, n]) => `${n} ${each}`);
    by("selection").textContent = total ? `${total} selected: ${parts.join(", ")}.` : "Nothing is selected.";
  }
  // The next image in this direction: of those selected, or else of those whose class is shown.
  function step(direction) {
    const pool = selected().length ? selected().sort((a, b) => a - b)
      : [...labels.keys()].filter((image) => boxes[labels[image]].checked);
    const later = pool.findIndex((image) => image >= (current ?? 0)), at = later < 0 ? pool.length : later;
    const place = current === null ? 0 : direction < 0 ? at - 1 : at + (pool[at] === current);
    if (pool.length) show(pool[(place + pool.length) % pool.length]);
  }

  planes.length > 1 && (by("latent1").value = 1);
  for (const side of [0, 1]) {
    const select = by(`latent${side}`);
    select.addEventListener("change", () => choose(side, planes[select.value]));
    choose(side, planes[select.value]);
  }
  source.inspect.connect(() => {
    const {indices: under} = source.inspected;
    if (under.length && under.at(-1) !== current) show(under.at(-1));
  });
  source.connect(source.selected.properties.indices.change, tell);
  for (const box of boxes) box.addEventListener("change", filterClasses);
  for (const [id, checked] of [["all", true], ["none", false]]) {
    by(id).addEventListener("click", () => { for (const box of boxes) box.checked = checked; filterClasses(); });
  }
  by("clear").addEventListener("click", () => { source.selected.indices = []; });
  by("previous").addEventListener("click", () => step(-1));
  by("next").addEventListener("click", () => step(1));
}

// Text, axes and grids in the page's own colors, light or dark; what is measured keeps its color.
function paint(drawn) {
  const style = getComputedStyle(document.documentElement), color = (name) => style.getPropertyValue(name).trim();
  const inks = ["text", "title_text", "label_text", "axis_label_text", "major_label_text", "axis_line",
                "major_tick_line", "minor_tick_line"].map((part) => [`${part}_color`, color("--ink")]);
  for (const model of new Set(drawn.roots().flatMap((root) => [...root.references()]))) {
    for (const [key, value] of [...inks, ["grid_line_color", color("--rule")]]) {
      if (key in model.properties) model[key] = value;
    }
    if (model.data_source?.name === "rings") model.glyph.line_color = color("--ink");
  }
}

(async () => {
  const charts = read("document"), roots = Object.fromEntries(charts.roots.map(({id}) => [id, `chart-${id}`]));
  await Bokeh.embed.embed_items({report: charts}, [{docid: "report", roots, root_ids: Object.keys(roots)}]);
  const drawn = Bokeh.documents[0], dark = matchMedia("(prefers-color-scheme: dark)");
  paint(drawn);
  dark.addEventListener("change", () => paint(drawn));
  const data = read("data");
  if (data.planes.length) explore(drawn, data);
  document.body.dataset.ready = "true";
})();
