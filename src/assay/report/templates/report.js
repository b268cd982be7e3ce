"use strict";
(function () {
  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const thin = (items, most) => {
    const step = Math.max(1, Math.ceil(items.length / most));
    return items.map((label, at) => [at, label]).filter(([at]) => at % step === 0);
  };

  function theme() {
    const font = { color: ink("ink"), family: ink("sans"), size: 12 };
    return { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: font,
      hoverlabel: { bgcolor: ink("card"), bordercolor: ink("muted"), font: font, align: "left" } };
  }

  function trace(map, narrow) {
    const low = map.centre - map.limit, high = map.centre + map.limit;
    const named = { 0: "0 corrupted", 1: "1 clean" };
    const short = (value) => String(Number(value.toPrecision(2)));
    const inside = [0, 1].filter((value) => value >= low && value <= high);
    const ends = [low, high].filter((end) => inside.every((value) => Math.abs(end - value) > 0.12 * map.limit));
    const ticks = ends.concat(inside);
    const ramp = map.ramp.map((colour, at) => [at / (map.ramp.length - 1), colour]);
    const cells = map.z.map((row, i) => row.map((_, j) => [map.layers[i], map.labels[j], map.low[i][j], map.high[i][j]]));
    return { type: "heatmap", z: map.z, customdata: cells, zmin: low, zmax: high, colorscale: ramp, xgap: map.labels.length > 80 ? 0 : 1, ygap: map.layers.length > 80 ? 0 : 1,
      hoverongaps: false,
      hovertemplate: "<b>layer %{customdata[0]}, " + map.axis + " %{customdata[1]}</b><br>effect %{z:.3f}" +
        "<br>95% interval %{customdata[2]:.3f} to %{customdata[3]:.3f}<extra></extra>",
      colorbar: { orientation: narrow ? "h" : "v", y: narrow ? 1.02 : 0.5, yanchor: narrow ? "bottom" : "middle",
        thickness: 12, len: 1, outlinewidth: 0, tickvals: ticks, ticktext: ticks.map((t) => named[t] || short(t)) } };
  }

  function layout(map, narrow) {
    const longest = Math.max(...map.labels.map((label) => label.length)), long = longest > 3;
    const columns = thin(map.labels, long ? (narrow ? 18 : 40) : (narrow ? 10 : 20)), rows = thin(map.layers, 16);
    const below = long ? 44 + 6.6 * longest : 52;
    return Object.assign(theme(), { margin: { l: 48, r: narrow ? 10 : 110, t: narrow ? 56 : 10, b: below }, dragmode: false,
      xaxis: { title: { text: map.axis, standoff: 6 }, tickvals: columns.map((c) => c[0]), ticktext: columns.map((c) => c[1]),
        tickangle: long ? -90 : 0, showgrid: false, zeroline: false, fixedrange: map.labels.length <= 64 },
      yaxis: { title: { text: "layer" }, tickvals: rows.map((r) => r[0]), ticktext: rows.map((r) => String(r[1])),
        autorange: "reversed", showgrid: false, zeroline: false, fixedrange: true } });
  }

  function draw(plot) {
    const map = JSON.parse(document.getElementById("data-" + plot.dataset.map).textContent);
    const narrow = plot.parentElement.clientWidth < 520;
    const options = { responsive: true, displayModeBar: false, displaylogo: false, showLink: false };
    plot.classList.add("ready");
    return Plotly.react(plot, [trace(map, narrow)], layout(map, narrow), options);
  }

  const plots = Array.from(document.querySelectorAll(".plot"));
  const redraw = () => Promise.all(plots.map(draw)).then(() => { document.documentElement.dataset.drawn = plots.length; });
  redraw();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  window.matchMedia("(max-width: 34rem)").addEventListener("change", redraw);
})();
