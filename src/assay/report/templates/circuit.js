"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data-circuit").textContent);
  const plot = document.getElementById("circuit"), says = document.getElementById("says");
  const many = document.getElementById("many"), words = document.getElementById("many-words");
  const free = document.getElementById("free"), hint = says.textContent;
  const exact = (value) => value === null ? "no score" : String(Number(value.toPrecision(4))).replace("-", "−");
  const nodes = new Map(data.nodes.map((node) => [node.name, node]));
  let pinned = null;

  function make(name, attributes, parent, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key of Object.keys(attributes)) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }

  function shown() { return data.links.slice(0, Number(many.value)); }

  /* Everything reachable from a node along the edges shown, in one direction. */
  function reach(name, from, to, lines) {
    const found = new Set([name]), used = new Set(), open = [name];
    while (open.length) {
      const at = open.pop();
      for (const line of lines) {
        if (line[from] !== at) continue;
        used.add(line);
        if (!found.has(line[to])) { found.add(line[to]); open.push(line[to]); }
      }
    }
    return { found, used };
  }

  function paths(name) {
    const lines = shown().concat(data.inside);
    const up = reach(name, "source", "target", lines), down = reach(name, "target", "source", lines);
    return { found: new Set([...up.found, ...down.found]), used: new Set([...up.used, ...down.used]) };
  }

  function aboutNode(node) {
    const into = shown().filter((link) => link.target === node.name), out = shown().filter((link) => link.source === node.name);
    const sum = (links) => exact(links.reduce((total, link) => total + (link.score || 0), 0));
    const own = node.score === null ? "" : `, own score ${exact(node.score)}`;
    return `${node.name}${own}: ${into.length} edges in (sum ${sum(into)}), ${out.length} out (sum ${sum(out)})`;
  }

  function aboutLink(link) { return `${link.edge}: score ${exact(link.score)}, rank ${data.links.indexOf(link) + 1}`; }

  function draw() {
    const svg = make("svg", { viewBox: `0 0 ${data.width} ${data.height + (data.columns.length ? 16 : 0)}`, role: "group", "aria-label": "Circuit" }, document.getElementById("stage"));
    data.bands.forEach(([layer, top, bottom], at) => {
      if (at % 2 === 0) make("rect", { class: "band", x: 0, y: top, width: data.width, height: bottom - top }, svg);
      make("text", { class: "band-name", x: 8, y: (top + bottom) / 2 + 4 }, svg, "layer " + layer);
    });
    for (const [name, middle, right] of data.columns) {
      make("line", { class: "column", x1: right, x2: right, y1: 0, y2: data.height }, svg);
      for (const y of [12, data.height + 12]) make("text", { class: "column-name", x: middle, y }, svg, name);
    }
    for (const line of data.inside) line.element = make("path", { class: "inside", d: line.d }, svg);
    for (const link of data.links.slice().reverse()) {
      const kind = link.sign > 0 ? "link up" : link.sign < 0 ? "link down" : "link";
      link.element = make("path", { class: kind, d: link.d, "stroke-width": link.width }, svg);
    }
    for (const link of data.links) {
      link.hit = make("path", { class: "hit", d: link.d }, svg);
      link.hit.addEventListener("pointerenter", () => { link.element.classList.add("over"); says.textContent = aboutLink(link); });
      link.hit.addEventListener("pointerleave", () => { link.element.classList.remove("over"); rest(); });
    }
    for (const node of data.nodes) {
      const [width, height] = data.box;
      node.element = make("g", { class: "node " + node.kind, tabindex: 0, role: "button", "aria-pressed": "false", "aria-label": node.name, "data-name": node.name }, svg);
      make("rect", { x: node.x - width / 2, y: node.y - height / 2, width, height, rx: node.kind === "head" ? 8 : 2 }, node.element);
      make("text", { x: node.x, y: node.y }, node.element, node.label);
      for (const event of ["pointerenter", "focus"]) node.element.addEventListener(event, () => { says.textContent = aboutNode(node); });
      for (const event of ["pointerleave", "blur"]) node.element.addEventListener(event, rest);
      node.element.addEventListener("click", () => pin(node.name));
      node.element.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pin(node.name); }
      });
    }
  }

  function rest() { says.textContent = pinned ? "Pinned " + aboutNode(nodes.get(pinned)) : hint; }

  function pin(name) { pinned = pinned === name ? null : name; update(); }

  function update() {
    const links = shown(), inShow = new Set(links);
    const touched = new Set(links.flatMap((link) => [link.source, link.target]));
    if (pinned && !touched.has(pinned)) pinned = null;
    const kept = pinned ? paths(pinned) : null;
    for (const link of data.links) {
      const gone = !inShow.has(link);
      for (const element of [link.element, link.hit]) {
        element.classList.toggle("gone", gone);
        element.classList.toggle("faint", Boolean(kept) && !kept.used.has(link));
      }
    }
    for (const line of data.inside) {
      line.element.classList.toggle("gone", !touched.has(line.source) || !touched.has(line.target));
      line.element.classList.toggle("faint", Boolean(kept) && !kept.used.has(line));
    }
    for (const node of data.nodes) {
      node.element.classList.toggle("gone", !touched.has(node.name));
      node.element.classList.toggle("faint", Boolean(kept) && !kept.found.has(node.name));
      node.element.classList.toggle("pinned", node.name === pinned);
      node.element.setAttribute("aria-pressed", String(node.name === pinned));
    }
    document.querySelectorAll("#edges tbody tr").forEach((row, at) => { row.hidden = at >= links.length; });
    const last = links[links.length - 1].score;
    words.textContent = `${links.length} of ${data.links.length}` + (last === null ? "" : `, |score| from ${exact(Math.abs(last))}`);
    free.hidden = !pinned;
    rest();
  }

  draw();
  many.addEventListener("input", update);
  free.addEventListener("click", () => pin(pinned));
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && pinned) pin(pinned); });
  update();
  plot.classList.add("ready");
  document.documentElement.dataset.drawn = 1;
})();
