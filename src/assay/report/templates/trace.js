"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data-trace").textContent);
  const plot = document.getElementById("trace"), says = document.getElementById("says"), hint = says.textContent;
  const many = document.getElementById("many"), words = document.getElementById("many-words"), free = document.getElementById("free");
  const about = document.getElementById("about"), TOP = 40, mark = data.mark;
  const exact = (value) => String(Number(value.toPrecision(4))).replace("-", "−");
  const links = data.links.map(([source, target, effect, width]) => ({ source, target, effect, width }));
  let pinned = null, below = null;

  function make(name, attributes, parent, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key of Object.keys(attributes)) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }

  function path(link) {
    const a = data.nodes[link.source], b = data.nodes[link.target], y = a.y - mark, z = b.y + mark;
    const reach = Math.max(8, 0.42 * (y - z));
    return `M${a.x} ${y}C${a.x} ${y - reach} ${b.x} ${z + reach} ${b.x} ${z}`;
  }

  function wordsOf(node) {
    const influence = node.kind === "logit" ? "" : `, influence ${exact(node.influence)}`;
    return `${node.label}: ${node.words}${influence}${node.group ? `, group “${node.group}”` : ""}`;
  }

  function symbol(node, layer) {
    const common = { class: "mark " + node.kind, tabindex: 0, role: "button", "aria-pressed": "false", "aria-label": wordsOf(node), "data-name": node.name };
    if (node.kind === "latent") return make("circle", { ...common, cx: node.x, cy: node.y, r: mark }, layer);
    const r = node.kind === "error" ? mark * 0.8 : mark;
    const turned = node.kind === "error" ? { transform: `rotate(45 ${node.x} ${node.y})` } : {};
    return make("rect", { ...common, ...turned, x: node.x - r, y: node.y - r, width: 2 * r, height: 2 * r }, layer);
  }

  function draw() {
    const svg = make("svg", { viewBox: `0 -88 ${data.width} ${data.height + 110}`, role: "group", "aria-label": "Attribution graph", style: `min-width: ${Math.round(0.8 * data.width)}px` }, document.getElementById("stage"));
    data.bands.forEach(([name, top, bottom], at) => {
      if (at % 2 === 0) make("rect", { class: "band", x: 0, y: top, width: data.width, height: bottom - top }, svg);
      make("text", { class: "band-name", x: 8, y: (top + bottom) / 2 + 4 }, svg, name);
    });
    data.columns.forEach(([token, left, right]) => {
      make("line", { class: "column", x1: right, x2: right, y1: 0, y2: data.height }, svg);
      make("text", { class: "token", x: (left + right) / 2, y: data.height + 14 }, svg, token);
    });
    below = make("g", {}, svg);
    data.nodes.forEach((node, at) => {
      node.element = symbol(node, svg);
      if (node.kind === "logit") make("text", { class: "answer", x: node.x, y: node.y - 9, transform: `rotate(-60 ${node.x} ${node.y - 9})` }, svg, node.label);
      for (const event of ["pointerenter", "focus"]) node.element.addEventListener(event, () => { says.textContent = wordsOf(node); });
      for (const event of ["pointerleave", "blur"]) node.element.addEventListener(event, rest);
      node.element.addEventListener("click", () => pin(at));
      node.element.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pin(at); }
      });
    });
  }

  function rest() { says.textContent = pinned === null ? hint : wordsOf(data.nodes[pinned]); }

  function pin(at) { pinned = pinned === at ? null : at; update(); }

  function list(id, found, end) {
    const box = document.getElementById(id);
    box.replaceChildren();
    for (const link of found.slice(0, TOP)) {
      const item = document.createElement("li"), size = document.createElement("span"), go = document.createElement("button");
      const node = data.nodes[link[end]];
      item.className = link.effect >= 0 ? "up" : "down";
      size.textContent = exact(link.effect);
      go.type = "button";
      go.textContent = `${node.label}, ${node.words}`;
      go.addEventListener("click", () => { pinned = link[end]; update(); });
      item.append(size, go);
      box.append(item);
    }
    if (!found.length) { const none = document.createElement("li"); none.textContent = "nothing in this graph"; box.append(none); }
  }

  function update() {
    const shown = pinned === null ? new Set(links.slice(0, Number(many.value)))
      : new Set(links.filter((link) => link.source === pinned || link.target === pinned));
    const touched = new Set([...shown].flatMap((link) => [link.source, link.target]));
    below.replaceChildren();
    for (const link of [...shown].reverse()) {
      make("path", { class: "link " + (link.effect >= 0 ? "up" : "down"), d: path(link), "stroke-width": link.width }, below);
    }
    data.nodes.forEach((node, at) => {
      node.element.classList.toggle("pinned", at === pinned);
      node.element.classList.toggle("faint", pinned !== null && at !== pinned && !touched.has(at));
      node.element.setAttribute("aria-pressed", String(at === pinned));
    });
    about.hidden = free.hidden = pinned === null;
    if (pinned !== null) {
      document.getElementById("about-name").textContent = data.nodes[pinned].label + ", " + data.nodes[pinned].words;
      list("into", links.filter((link) => link.target === pinned), "source");
      list("onto", links.filter((link) => link.source === pinned), "target");
    }
    words.textContent = pinned === null ? `${shown.size} of ${data.n_edges}` : `the ${shown.size} strongest of the pinned node`;
    rest();
  }

  draw();
  many.addEventListener("input", () => { pinned = null; update(); });
  free.addEventListener("click", () => pin(pinned));
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && pinned !== null) pin(pinned); });
  update();
  plot.classList.add("ready");
  document.getElementById("stage").scrollLeft = 1e6; /* the logits are at the right */
  document.documentElement.dataset.drawn = 1;
})();
