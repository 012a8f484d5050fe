"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  // Okabe & Ito, safe for the colour blind; orange is kept for what is selected
  const BLUE = "#0072b2", GREY = "#8a8a8a", PALE = "#c9c9c9", SELECT = "#d55e00", INK = "#222222";
  const CLASSES = ["#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#b89b00", "#332288", "#44aa99"];
  const SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down"];
  const MISSING = 65535;
  const coarse = window.matchMedia("(pointer: coarse)").matches;
  const $ = (id) => document.getElementById(id);
  for (const set of DATA.sets) set.treatments = DATA.treatments[set.treatments];
  const state = { set: DATA.sets[0], treatment: null };
  const figures = [];

  // --- numbers and words ---------------------------------------------------------------------------------------
  // numbers and pictures stand in `texts`, once for all sets that have them
  const bytes = (at) => Uint8Array.from(atob(DATA.texts[at]), (c) => c.charCodeAt(0));
  function codes(at) {
    const raw = bytes(at), out = new Array(raw.length / 2);
    for (let i = 0; i < out.length; i++) {
      const code = raw[2 * i] + 256 * raw[2 * i + 1];
      out[i] = code === MISSING ? -1 : code;
    }
    return out;
  }
  const numbers = (packed) => codes(packed.data).map((code) => (code < 0 ? null : packed.lo + code * packed.step));
  function said(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (Number.isInteger(value)) return String(value);
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(1) : String(Number(value.toPrecision(3)));
  }
  // plotly reads tags and entities in its texts; names are never to be read as such
  const plain = (word) => String(word).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const clipped = (word, most = 40) => (word.length > most ? word.slice(0, most - 1) + "…" : word);
  function make(kind, text, parent) {
    const made = document.createElement(kind);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.appendChild(made);
    return made;
  }
  function fill(select, options) {
    const before = select.value;
    select.replaceChildren();
    for (const [value, words] of options) {
      const option = make("option", words, select);
      option.value = value;
    }
    if (options.some(([value]) => value === before)) select.value = before;
  }
  const range = (n) => Array.from({ length: n }, (_, i) => i);
  const name = (t) => state.set.treatments.name[t];

  // --- plots -----------------------------------------------------------------------------------------------------
  // only these buttons: by default there is one that uploads the data to plotly's own server
  const CONFIG = {
    responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
    displayModeBar: window.matchMedia("(hover: hover)").matches ? "hover" : false,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    toImageButtonOptions: { format: "svg", filename: "figure" },
  };
  const axis = (title, more) => ({
    title: { text: title, standoff: 6 }, automargin: true, zeroline: false, gridcolor: "#ececec", linecolor: INK,
    ticks: "outside", ticklen: 3, ...more,
  });
  const layout = (more) => ({
    font: { family: "system-ui, Arial, sans-serif", size: 12, color: INK }, paper_bgcolor: "#fff", plot_bgcolor: "#fff",
    margin: { l: 48, r: 12, t: 28, b: 40 }, height: 340, hovermode: "closest", dragmode: coarse ? false : "zoom",
    legend: { orientation: "h", y: -0.22, x: 0, font: { size: 11 }, itemsizing: "constant" }, showlegend: false,
    hoverlabel: { align: "left", namelength: 0 }, ...more,
  });
  const head = (text) => ({ text, x: 0, xref: "paper", xanchor: "left", font: { size: 13 }, y: 0.98, yanchor: "top" });
  // ticks of an axis of logarithms: 1, 2, 5, 10 or, over more than two decades, powers of ten
  function decades(values) {
    const known = values.filter((v) => v > 0).map(Math.log10);
    if (!known.length) return {};
    const low = Math.floor(Math.min(...known)), high = Math.ceil(Math.max(...known)), far = Math.max(...known) - Math.min(...known) > 2;
    const step = Math.max(1, Math.ceil((high - low) / 5));
    const ticks = far ? range(high - low + 1).filter((k) => k % step === 0).map((k) => 10 ** (low + k)) : range(high - low + 1).flatMap((k) => [1, 2, 5].map((m) => m * 10 ** (low + k)));
    return { type: "log", tickmode: "array", tickvals: ticks, ticktext: ticks.map(said) };
  }
  const clickable = new WeakSet();
  function plot(div, traces, about) {
    Plotly.react(div, traces, layout(about), CONFIG);
    if (!clickable.has(div)) {
      clickable.add(div);
      div.on("plotly_click", (event) => {
        const found = treatmentAt(div, event.points[0]);
        if (found >= 0) select(found);
      });
    }
  }
  // what a point stands for: a trace has `treatments`, one a point (or rows of them, of a heatmap)
  function treatmentAt(div, point) {
    const known = point.data.meta && point.data.meta.treatments;
    if (!known) return -1;
    const at = point.pointNumber !== undefined ? point.pointNumber : point.pointIndex;
    const found = Array.isArray(at) ? (known[at[0]] || [])[at[1]] : known[at];
    return found === undefined || found === null ? -1 : found;
  }
  function nothing(id, why) {
    for (const div of document.querySelectorAll(`[id^="${id}-plot"]`)) {
      if (div.data) Plotly.purge(div);
      div.replaceChildren();
      clickable.delete(div);
    }
    $(`${id}-note`).textContent = `Not shown: ${why}.`;
  }
  const note = (id, words) => { $(`${id}-note`).textContent = words; };

  // --- columns of wells ---------------------------------------------------------------------------------------------
  const opened = new Map();
  function wells(set) {
    if (!opened.has(set)) {
      const w = set.wells;
      opened.set(set, {
        plate: codes(w.plate), row: codes(w.row), column: codes(w.column), treatment: codes(w.treatment),
        control: codes(w.control), values: new Map(),
      });
    }
    return opened.get(set);
  }
  function column(set, at) {
    const values = wells(set).values;
    if (!values.has(at)) {
      const one = set.wells.columns[at];
      values.set(at, one.levels ? codes(one.codes) : numbers(one.numbers));
    }
    return values.get(at);
  }
  const wellName = (row, col) =>
    (row >= 26 ? String.fromCharCode(64 + Math.floor(row / 26)) : "") + String.fromCharCode(65 + (row % 26)) +
    String(col + 1).padStart(2, "0");
  function aboutWell(set, i) {
    const w = wells(set), t = w.treatment[i];
    const words = [`${set.wells.plates[w.plate[i]]} ${wellName(w.row[i], w.column[i])}`];
    words.push(t >= 0 ? set.treatments.name[t] : "(no treatment)");
    if (t >= 0 && set.treatments.moa[t]) words.push(set.treatments.moa[t]);
    return words.map(plain).join("<br>");
  }
  const aboutTreatment = (set, t) =>
    [set.treatments.name[t], set.treatments.moa[t]].filter(Boolean).map(plain).join("<br>");

  // --- scores by curves -----------------------------------------------------------------------------------------------
  const LEVELS = { replicates: "wells", treatments: "treatments" };
  figure("curves", {
    fill(set) { fill($("curves-level"), Object.keys(set.curves).map((key) => [key, LEVELS[key] || key])); },
    controls: ["curves-level"],
    draw(set) {
      const found = set.curves[$("curves-level").value];
      if (found.why) return nothing("curves", found.why);
      const { precision: p, enrichment: e, hits: h } = found;
      const line = (x, y, called, colour, more) => ({ x, y, name: called, mode: "lines+markers", line: { color: colour },
        marker: { size: 5 }, hovertemplate: "%{x}: %{y:.3g}", ...more });
      plot($("curves-plot"), [
        line(p.k, p.precision, "precision", BLUE), line(p.k, p.recall, "recall", "#009e73", { marker: { symbol: "square", size: 5 } }),
        line(p.k, p.chance, "precision by chance", GREY, { mode: "lines", line: { color: GREY, dash: "dot" } }),
      ], { title: head("Precision and recall"), showlegend: true, xaxis: axis("k nearest profiles", { rangemode: "tozero" }),
        yaxis: axis("mean over profiles", { range: [0, 1.03] }) });
      plot($("curves-plot1"), [
        line(e.percentile, e.robust_high, "", BLUE, { mode: "lines", line: { width: 0 }, hoverinfo: "skip", hovertemplate: null }),
        line(e.percentile, e.robust_low, "", BLUE, { mode: "lines", line: { width: 0 }, fill: "tonexty",
          fillcolor: "rgba(0,114,178,.18)", hoverinfo: "skip", hovertemplate: null }),
        line(e.percentile, e.robust, "odds ratio", BLUE),
        line([e.percentile[0], e.percentile.at(-1)], [1, 1], "chance", GREY, { mode: "lines", line: { color: GREY, dash: "dot" } }),
      ], { title: head("Enrichment"), xaxis: axis("percentile of similarity"), yaxis: axis("odds ratio", decades([1, ...e.robust_low, ...e.robust_high].filter((v) => v !== null))) });
      plot($("curves-plot2"), [
        line(h.share, h.excess, "", BLUE, { mode: "lines" }),
        line([0, 1], [0, 0], "", GREY, { mode: "lines", line: { color: GREY, dash: "dot" } }),
      ], { title: head("Hits beyond chance"), xaxis: axis("share of the list of neighbours"), yaxis: axis("share of matches") });
      note("curves", `${found.n} profiles, ${found.labels} labels. Area of the hits over the first fifth of the list, ` +
        `5 times: ${said(found.s20)} (0 by chance, 0.9 at best).`);
    },
  });

  // --- runs that were compared ------------------------------------------------------------------------------------------
  const RUN_SCORES = { enrichment: "Enrichment (odds ratio)", precision_at_r: "Precision at R", mean_average_precision: "Mean average precision" };
  // names without the words that all of them begin with, and of long ones the end, by which they differ
  function ends(names) {
    let same = names.length > 1 ? names[0].length : 0;
    for (const word of names) while (!word.startsWith(names[0].slice(0, same))) same--;
    while (same > 0 && /[A-Za-z0-9.]/.test(names[0][same - 1])) same--;
    return names.map((word) => (same < 6 ? word : "…" + word.slice(same))).map((word) => (word.length > 30 ? "…" + word.slice(-29) : word));
  }
  if (DATA.runs) figure("runs", {
    draw() {
      const found = DATA.runs, all = range(found.names.length), by = found.scores.mean_average_precision[0];
      // the best ones have a colour, a dash and a shape of their own, in the order of the table
      const best = new Set([...all].sort((a, b) => (by[b] ?? -1) - (by[a] ?? -1)).slice(0, CLASSES.length));
      const place = new Map([...all].filter((i) => best.has(i)).map((i, n) => [i, n]));
      const colour = (i) => (best.has(i) ? CLASSES[place.get(i)] : PALE), shape = (i) => (best.has(i) ? SHAPES[place.get(i)] : "circle");
      const order = [...all.filter((i) => !best.has(i)), ...place.keys()];
      const words = ends(found.names).map(plain);
      Object.keys(RUN_SCORES).forEach((score, k) => {
        const [value, low, high] = found.scores[score], known = all.filter((i) => value[i] !== null);
        const log = score === "enrichment" && known.every((i) => value[i] > 0 && low[i] > 0);
        plot($(`runs-plot${k || ""}`), [{ mode: "markers", x: known.map((i) => value[i]), y: known, cliponaxis: false,
          marker: { size: 9, color: known.map(colour), symbol: known.map(shape) },
          error_x: { type: "data", symmetric: false, array: known.map((i) => high[i] - value[i]), arrayminus: known.map((i) => value[i] - low[i]), color: GREY, thickness: 1.5, width: 3 },
          text: known.map((i) => `${plain(found.names[i])}<br>${said(value[i])} (${said(low[i])} to ${said(high[i])})`), hoverinfo: "text" }], {
          height: Math.max(150, 70 + 22 * all.length), title: head(RUN_SCORES[score]), margin: { l: 20, r: 12, t: 28, b: 36 },
          xaxis: axis("", !known.length ? { visible: false } : log ? decades(known.flatMap((i) => [value[i], low[i], high[i]])) : { rangemode: "tozero", nticks: 6 }),
          yaxis: axis("", { range: [all.length - 0.5, -0.5], tickmode: "array", tickvals: all, ticktext: words, ticks: "", showgrid: false, tickfont: { size: 10 } }),
          annotations: known.length ? [] : [{ text: "undefined, see<br>below the table", x: 0.5, xref: "paper", y: 0.5, yref: "paper", showarrow: false, font: { size: 11 } }] });
      });
      const curve = (k, part, x, y, called, xtitle, more, chance) => plot($(`runs-plot${k}`), [
        ...chance, ...order.map((i) => ({ x: found.curves[part][i][x], y: found.curves[part][i][y], name: words[i], mode: best.has(i) ? "lines+markers" : "lines",
          line: { color: colour(i), width: best.has(i) ? 2 : 1 }, marker: { symbol: shape(i), size: 6, maxdisplayed: 10 }, hovertemplate: `${words[i]}<br>%{x:.3g}: %{y:.3g}` }))], {
        height: 280, title: head(called), xaxis: axis(xtitle), yaxis: axis(""), ...more });
      const dotted = (x, y) => [{ x, y, mode: "lines", hoverinfo: "skip", line: { color: GREY, dash: "dot", width: 1 } }];
      const first = found.curves.precision_recall[0], span = found.curves.enrichment[0].percentile;
      curve(3, "enrichment", "percentile", "robust", "Enrichment", "percentile of similarity", { yaxis: axis("odds ratio", decades([1, ...found.curves.enrichment.flatMap((one) => one.robust)])) }, dotted([span[0], span.at(-1)], [1, 1]));
      curve(4, "precision_recall", "k", "precision", "Precision", "k nearest profiles", { yaxis: axis("mean over profiles", { range: [0, 1.03] }) }, dotted(first.k, first.chance));
      curve(5, "hits", "share", "excess", "Hits beyond chance", "share of the list of neighbours", { yaxis: axis("share of matches") }, dotted([0, 1], [0, 0]));
      note("runs", all.length > best.size ? `The ${best.size} runs with the highest mean average precision are in colour.` : "");
    },
  });

  // --- plates ------------------------------------------------------------------------------------------------------------
  figure("plates", {
    controls: ["plates-column", "plates-view"],
    fill(set) {
      const columns = set.wells.columns.map((one, i) => [one, i]);
      const first = columns.find(([one]) => one.name === "Count");
      const select = $("plates-column"), before = select.value;
      fill(select, columns.filter(([one]) => one.name !== "row" && one.name !== "column" && one.name !== "plate")
        .map(([one, i]) => [String(i), one.feature ? `${one.name} (p ${said(one.edge.p)})` : one.name]));
      if (before === "" && first) select.value = String(first[1]);
      fill($("plates-view"), [["each", "each plate"], ["mean", "mean by position"],
        ...set.wells.plates.map((plate, i) => [String(i), plate])]);
    },
    draw(set) {
      const at = Number($("plates-column").value), one = set.wells.columns[at], view = $("plates-view").value;
      const w = wells(set), values = column(set, at), [rows, cols] = set.wells.shape;
      if (one.levels && view === "mean") {
        nothing("plates", `${one.name} holds words, which have no mean; choose each plate`);
        return;
      }
      const shown = view === "each" ? range(set.wells.plates.length) : view === "mean" ? [0] : [Number(view)];
      const width = $("plates-plot").clientWidth || 600;
      const across = Math.max(1, Math.min(shown.length, Math.floor(width / Math.max(150, cols * 7))));
      const down = Math.ceil(shown.length / across), wide = cols + 1;
      const cell = Math.min(30, Math.max(2, (width - 110) / (across * wide)));
      const gap = Math.max(2, Math.ceil(16 / cell)), high = rows + gap;  // room for the name of a plate above it
      const z = range(down * high).map(() => new Array(across * wide).fill(null));
      const text = z.map((line) => line.map(() => "")), treatments = z.map((line) => line.map(() => -1));
      const sums = view === "mean" ? z.map((line) => line.map(() => 0)) : null;
      const place = (i) => {
        const k = view === "mean" ? 0 : shown.indexOf(w.plate[i]);
        return k < 0 ? null : [Math.floor(k / across) * high + gap - 1 + w.row[i], (k % across) * wide + w.column[i]];
      };
      const marked = { x: [], y: [] };
      values.forEach((value, i) => {
        const cell = place(i);
        if (!cell) return;
        const [y, x] = cell;
        if (w.treatment[i] === state.treatment) { marked.x.push(x); marked.y.push(y); }
        treatments[y][x] = w.treatment[i];
        if (value === null || (one.levels && value < 0)) return;
        if (view === "mean") {
          z[y][x] = (z[y][x] || 0) + value; sums[y][x] += 1;
        } else {
          z[y][x] = value;
          text[y][x] = `${aboutWell(set, i)}<br>${plain(one.name)}: ${plain(one.levels ? one.levels[value] : said(value))}`;
        }
      });
      if (view === "mean") {
        for (const y of range(z.length)) for (const x of range(z[0].length)) {
          if (!sums[y][x]) continue;
          z[y][x] /= sums[y][x];
          text[y][x] = `${wellName(y - gap + 1, x)}: ${said(z[y][x])}<br>mean of ${sums[y][x]} wells`;
          treatments[y][x] = -1;
        }
      }
      const trace = { type: "heatmap", z, text, hoverinfo: "text", hoverongaps: false, meta: { treatments }, xgap: 0, ygap: 0,
        colorscale: "Cividis", colorbar: { thickness: 10, len: Math.min(1, 260 / (down * 120)), outlinewidth: 0, y: 1, yanchor: "top",
          title: { text: plain(clipped(one.name, 24)), side: "right" } } };
      if (one.levels) {
        const few = one.levels.length <= CLASSES.length, n = Math.max(one.levels.length, 1);
        trace.zmin = -0.5; trace.zmax = n - 0.5;
        trace.colorscale = few
          ? range(n).flatMap((i) => [[i / n, CLASSES[i]], [(i + 1) / n, CLASSES[i]]]) : "Viridis";
        if (few) Object.assign(trace.colorbar, { tickvals: range(n), ticktext: one.levels.map((l) => plain(clipped(l, 14))) });
        else trace.showscale = false;
      } else {
        // one far well is not to take all the colours
        const known = values.filter((v) => v !== null).sort((a, b) => a - b);
        if (known.length) { trace.zmin = known[Math.floor(known.length * 0.01)]; trace.zmax = known[Math.ceil(known.length * 0.99) - 1]; }
        if (trace.zmin === trace.zmax) { delete trace.zmin; delete trace.zmax; }
      }
      const names = shown.map((p, k) => ({ text: plain(clipped(view === "mean" ? "all plates" : set.wells.plates[p], 24)), showarrow: false,
        x: (k % across) * wide - 0.5, y: Math.floor(k / across) * high + gap - 1.55, xanchor: "left", yanchor: "bottom", font: { size: 11 } }));
      const frames = shown.map((_, k) => ({ type: "rect", line: { color: PALE, width: 1 },
        x0: (k % across) * wide - 0.5, x1: (k % across) * wide + cols - 0.5,
        y0: Math.floor(k / across) * high + gap - 1.5, y1: Math.floor(k / across) * high + gap + rows - 1.5 }));
      const single = shown.length === 1;
      const ticks = single
        ? { x: { tickvals: range(cols).filter((c) => cols <= 12 || c % 4 === 0), ticktext: range(cols).filter((c) => cols <= 12 || c % 4 === 0).map((c) => String(c + 1)), side: "bottom" },
          y: { tickvals: range(rows).filter((r) => rows <= 16 || r % 4 === 0).map((r) => r + gap - 1), ticktext: range(rows).filter((r) => rows <= 16 || r % 4 === 0).map((r) => wellName(r, 0).slice(0, -2)) } }
        : { x: { showticklabels: false, ticks: "" }, y: { showticklabels: false, ticks: "" } };
      plot($("plates-plot"), [trace, { x: marked.x, y: marked.y, mode: "markers", hoverinfo: "skip",
        marker: { symbol: "square-open", color: SELECT, size: Math.max(6, cell + 1), line: { width: 2.5, color: SELECT } } }], {
        height: Math.max(180, cell * down * high + 60), annotations: names, shapes: frames, margin: { l: single ? 36 : 8, r: 8, t: 8, b: single ? 30 : 8 },
        xaxis: { range: [-0.8, across * wide - 0.2], showgrid: false, zeroline: false, fixedrange: coarse, ...ticks.x },
        yaxis: { range: [down * high - 0.4, -0.6], showgrid: false, zeroline: false, fixedrange: coarse, ...ticks.y },
      });
      const test = one.edge, words = [];
      if (one.about) words.push(`${one.name}: ${one.about}.`);
      if (test && test.why) words.push(`Edge test: none, as ${test.why}.`);
      else if (test) words.push(`Edge test among ${set.wells.among}: an edge well is higher in ${said(100 * test.higher)} % of pairs, ` +
        `p = ${said(test.p)} (${test.edge} edge, ${test.inner} inner wells; ${set.wells.tested} columns were tested).`);
      const [kept, all] = set.wells.features;
      words.push(kept === all ? "" : kept ? `Of ${all} features the ${kept} with the lowest p are in this file.` : `The ${all} features are not in this file.`);
      if (marked.x.length) words.push(`Framed: ${name(state.treatment)}.`);
      note("plates", words.filter(Boolean).join(" "));
    },
    marks: true,
  });

  // --- map -----------------------------------------------------------------------------------------------------------------
  const POINTS = { wells: "wells", treatments: "treatments" };
  figure("map", {
    controls: ["map-level", "map-method", "map-colour"],
    fill(set) {
      fill($("map-level"), Object.entries(POINTS));
      this.methods(set);
    },
    changed(set, id) { if (id === "map-level") this.methods(set); },
    methods(set) {
      const level = $("map-level").value, found = set.maps[level], methods = [];
      (found.maps || []).forEach((one, m) => {
        for (let k = 0; k + 1 < one.axes.length; k += 2) methods.push([`${m},${k}`, one.axes.length > 2 ? `${one.name} ${k + 1}–${k + 2}` : one.name]);
      });
      fill($("map-method"), methods);
      const select = $("map-colour"), first = select.options.length === 0;
      fill(select, level === "wells" ? set.wells.columns.map((one, i) => [`c${i}`, one.name])
        : [["moa", DATA.columns.moa || "class"], ["control", "control"], ["active", "activity (mean average precision)"]]);
      if (first) {
        const moa = set.wells.columns.findIndex((one) => one.name === DATA.columns.moa);
        if (level === "wells") select.value = `c${Math.max(moa, 0)}`;
      }
    },
    draw(set) {
      const level = $("map-level").value, found = set.maps[level];
      if (found.why) return nothing("map", found.why);
      if (!$("map-method").value) return nothing("map", "all profiles lie on one line");
      const [m, k] = $("map-method").value.split(",").map(Number), one = found.maps[m];
      const rows = codes(found.rows), x = numbers(one.points[k]), y = numbers(one.points[k + 1]);
      const w = wells(set), of = level === "wells" ? rows.map((i) => w.treatment[i]) : rows;
      const text = rows.map((i) => (level === "wells" ? aboutWell(set, i) : aboutTreatment(set, i)));
      const [values, levels, title] = this.colours(set, level, rows, $("map-colour").value);
      const size = rows.length > 3000 ? 4 : rows.length > 500 ? 6 : 8, traces = [];
      const trace = (keep, called, marker) => traces.push({ type: "scatter", mode: "markers", name: plain(clipped(called, 30)),
        x: keep.map((i) => x[i]), y: keep.map((i) => y[i]), text: keep.map((i) => text[i]), hoverinfo: "text",
        meta: { treatments: keep.map((i) => of[i]) }, marker: { size, opacity: 0.8, ...marker } });
      const all = range(rows.length), words = [];
      if (levels) {
        const count = levels.map((_, l) => values.filter((v) => v === l).length);
        const order = range(levels.length).sort((a, b) => count[b] - count[a] || a - b);
        const named = new Set(order.slice(0, CLASSES.length));
        const rest = all.filter((i) => !named.has(values[i]));
        if (rest.length) trace(rest, levels.length > CLASSES.length ? `${levels.length - CLASSES.length} others` : "(none)", { color: PALE });
        range(levels.length).filter((l) => named.has(l)).forEach((l, n) =>
          trace(all.filter((i) => values[i] === l), levels[l], { color: CLASSES[n], symbol: SHAPES[n] }));
        if (levels.length > CLASSES.length) words.push(`The ${CLASSES.length} largest of ${levels.length} are in colour.`);
      } else {
        trace(all, title, { color: values, colorscale: "Viridis", showscale: true,
          colorbar: { thickness: 10, outlinewidth: 0, title: { text: plain(clipped(title, 24)), side: "right" } } });
      }
      const mine = all.filter((i) => of[i] === state.treatment);
      traces.push({ mode: "markers", x: mine.map((i) => x[i]), y: mine.map((i) => y[i]), text: mine.map((i) => text[i]), hoverinfo: "text",
        showlegend: false, marker: { size: size + 7, color: "rgba(0,0,0,0)", symbol: "circle", line: { color: SELECT, width: 3 } } });
      plot($("map-plot"), traces, { height: 480, showlegend: Boolean(levels), legend: { orientation: "h", y: -0.14, font: { size: 11 }, itemsizing: "constant" },
        xaxis: axis(one.axes[k]), yaxis: axis(one.axes[k + 1]) });
      words.push(`${rows.length} ${level}.`);
      if (set.left) words.push(`${set.left} wells are left out of all figures of profiles: a feature is missing or infinite, or all are 0.`);
      if (found.note) words.push(found.note + ".");
      note("map", words.join(" "));
    },
    colours(set, level, rows, chosen) {
      if (level === "wells") {
        const at = Number(chosen.slice(1)), one = set.wells.columns[at], all = column(set, at);
        return [rows.map((i) => all[i]), one.levels || null, one.name];
      }
      if (chosen === "control") return [rows.map((t) => set.treatments.control[t]), ["treated", "control"], "control"];
      if (chosen === "active") {
        const known = new Map((set.activity.treatment || []).map((t, i) => [t, set.activity.map[i]]));
        return [rows.map((t) => (known.has(t) ? known.get(t) : null)), null, "mean average precision"];
      }
      const levels = [...new Set(rows.map((t) => set.treatments.moa[t]))].filter(Boolean).sort();
      const at = new Map(levels.map((l, i) => [l, i]));
      return [rows.map((t) => (at.has(set.treatments.moa[t]) ? at.get(set.treatments.moa[t]) : -1)), levels, DATA.columns.moa];
    },
    marks: true,
  });

  // --- similarity ---------------------------------------------------------------------------------------------------------
  figure("similarity", {
    controls: ["similarity-order"],
    fill() { fill($("similarity-order"), [["by_class", `by ${DATA.columns.moa || "name"}`], ["tree", "as a tree"]]); },
    draw(set) {
      const found = set.similarity;
      if (found.why) return nothing("similarity", found.why);
      const order = found[$("similarity-order").value], tree = $("similarity-order").value === "tree", n = order.length;
      if (!this.raw || this.of !== set) { this.raw = new Int8Array(bytes(found.cosine).buffer); this.of = set; }
      const z = order.map((i) => order.map((j) => (this.raw[i * n + j] / 127) * found.limit));
      const ids = order.map((i) => found.treatments[i]), treatments = order.map(() => ids);
      const traces = [{ type: "heatmap", z, zmin: -found.limit, zmax: found.limit, colorscale: [[0, "#2166ac"], [0.25, "#92c5de"], [0.5, "#ffffff"], [0.75, "#f4a582"], [1, "#b2182b"]],
        meta: { treatments: ids.map((t) => ids.map(() => t)) }, xaxis: "x", yaxis: "y",
        text: n <= 250 ? ids.map((a) => ids.map((b) => `${plain(name(a))}<br>${plain(name(b))}`)) : undefined,
        hovertemplate: n <= 250 ? "%{text}<br>cosine %{z:.2f}<extra></extra>" : undefined, hoverinfo: n <= 250 ? undefined : "z",
        colorbar: { thickness: 10, outlinewidth: 0, len: 0.6, title: { text: "cosine", side: "right" } } }];
      const label = (t) => plain(clipped(set.treatments.moa[t] || name(t), 22));
      const shapes = [], marks = { tickvals: [], ticktext: [] };
      if (!tree) {
        let start = 0;
        const runs = [];
        for (let i = 1; i <= n; i++) {
          if (i < n && set.treatments.moa[ids[i]] === set.treatments.moa[ids[start]]) continue;
          if (set.treatments.moa[ids[start]]) {
            runs.push([start, i]);
            if (i - start > 1) shapes.push({ type: "rect", x0: start - 0.5, x1: i - 0.5, y0: start - 0.5, y1: i - 0.5, line: { color: INK, width: 1 } });
          }
          start = i;
        }
        if (runs.length <= 40) for (const [a, b] of runs) { marks.tickvals.push((a + b - 1) / 2); marks.ticktext.push(label(ids[a])); }
      }
      if (!marks.tickvals.length && n <= 45) { marks.tickvals = range(n); marks.ticktext = ids.map((t) => plain(clipped(name(t), 22))); }
      const at = ids.indexOf(state.treatment);
      if (at >= 0) for (const [a, b, c, d] of [[-0.5, n - 0.5, at - 0.5, at + 0.5], [at - 0.5, at + 0.5, -0.5, n - 0.5]]) {
        shapes.push({ type: "rect", x0: a, x1: b, y0: c, y1: d, line: { color: SELECT, width: 2 } });
      }
      if (tree) {
        const x = [], y = [];
        found.across.forEach((bracket, i) => { x.push(...bracket, null); y.push(...found.up[i], null); });
        traces.push({ x, y, mode: "lines", line: { color: GREY, width: 1 }, hoverinfo: "skip", xaxis: "x", yaxis: "y2" });
      }
      const wide = $("similarity-plot").clientWidth || 600, side = Math.min(wide, 640);
      const scaled = n > 1 && wide >= 640 ? { scaleanchor: "x", constrain: "domain", constraintoward: "top" } : {};
      plot($("similarity-plot"), traces, { height: side + (tree ? 60 : 0), shapes, margin: { l: 20, r: 8, t: 8, b: 20 },
        xaxis: { range: [-0.5, n - 0.5], showticklabels: false, ticks: "", showgrid: false, zeroline: false, fixedrange: coarse, anchor: "y", constrain: "domain", constraintoward: "left" },
        yaxis: { range: [n - 0.5, -0.5], showgrid: false, zeroline: false, ticks: "", automargin: true, fixedrange: coarse, domain: tree ? [0, 0.84] : [0, 1],
          tickmode: "array", ...marks, tickfont: { size: 10 }, ...scaled },
        yaxis2: { domain: [0.86, 1], showgrid: false, zeroline: false, title: { text: tree ? "distance" : "", font: { size: 10 } }, nticks: 3, tickfont: { size: 9 }, visible: tree, fixedrange: true } });
      const words = [`${n} treatments.`];
      if (found.total > n) words.push(`Of ${found.total} these are of the largest classes.`);
      if (state.treatment !== null && at < 0) words.push(`${name(state.treatment)} is not among them.`);
      const row = state.treatment === null ? -1 : codes(found.nearest.of).indexOf(state.treatment);
      if (row >= 0) {
        const most = found.nearest.most, part = (list) => list.slice(row * most, (row + 1) * most);
        const cosine = part(numbers(found.nearest.cosine));
        words.push(`Nearest to ${name(state.treatment)}: ` + part(codes(found.nearest.who)).map((t, k) =>
          `${name(t)}${set.treatments.moa[t] ? ` (${set.treatments.moa[t]})` : ""} ${said(cosine[k])}`).join("; ") + ".");
      }
      note("similarity", words.join(" "));
    },
    marks: true,
  });

  // --- replicates -----------------------------------------------------------------------------------------------------------
  figure("replicates", {
    draw(set) {
      const found = set.replicates;
      if (found.why) return nothing("replicates", found.why);
      const shuffled = numbers(found.null), every = [...found.median, ...shuffled].filter((v) => v !== null);
      const low = Math.min(...every), high = Math.max(...every), size = Math.max((high - low) / 40, 1e-6);
      const bars = (x, called, colour) => ({ type: "histogram", x, name: called, histnorm: "percent", opacity: 0.65,
        xbins: { start: low, end: high + size, size }, marker: { color: colour }, hovertemplate: "%{y:.3g} %<extra></extra>" });
      const at = found.treatment.indexOf(state.treatment);
      const shapes = at < 0 ? [] : [{ type: "line", x0: found.median[at], x1: found.median[at], y0: 0, y1: 1, yref: "paper", line: { color: SELECT, width: 3 } }];
      plot($("replicates-plot"), [bars(shuffled, "shuffled", GREY), bars(found.median, "replicates", BLUE)], { barmode: "overlay", showlegend: true,
        shapes, xaxis: axis("median Pearson correlation"), yaxis: axis("% of the values") });
      const words = [`${found.treatment.length} treatments; percent replicating ${said(found.percent)} (5 by chance).`];
      if (found.apart.length) words.push(`Wells of the same ${found.apart.join(" or ")} are not compared.`);
      if (at >= 0) words.push(`${name(state.treatment)}: ${said(found.median[at])} of ${found.n[at]} wells, 95th percentile by chance ${said(found.null_95[at])}.`);
      else if (state.treatment !== null) words.push(`${name(state.treatment)} has none.`);
      note("replicates", words.join(" "));
    },
    marks: true,
  });

  // --- activity -----------------------------------------------------------------------------------------------------------
  figure("activity", {
    controls: ["activity-level"],
    fill() { fill($("activity-level"), [["activity", "treatments against controls"], ["classes", `${DATA.columns.moa || "class"} against others`]]); },
    draw(set) {
      const level = $("activity-level").value, found = set[level];
      if (found.why) return nothing("activity", found.why);
      const called = found.treatment ? found.treatment.map((t) => name(t)) : found.label, all = range(found.map.length);
      const up = found.p.map((p) => -Math.log10(p));
      const text = all.map((i) => `${plain(called[i])}<br>mAP ${said(found.map[i])}, p ${said(found.p[i])}, q ${said(found.q[i])}, n ${found.n[i]}`);
      const trace = (keep, words, marker) => ({ mode: "markers", name: words, x: keep.map((i) => found.map[i]), y: keep.map((i) => up[i]), text: keep.map((i) => text[i]),
        hoverinfo: "text", meta: { treatments: found.treatment ? keep.map((i) => found.treatment[i]) : keep.map(() => -1) }, marker: { size: 8, opacity: 0.8, ...marker } });
      const mine = all.filter((i) => (found.treatment ? found.treatment[i] === state.treatment : state.treatment !== null && found.label[i] === set.treatments.moa[state.treatment]));
      plot($("activity-plot"), [trace(all.filter((i) => !(found.q[i] < 0.05)), "q ≥ 0.05", { color: GREY, symbol: "circle-open" }),
        trace(all.filter((i) => found.q[i] < 0.05), "q < 0.05", { color: BLUE }),
        { ...trace(mine, "", { size: 15, color: "rgba(0,0,0,0)", line: { color: SELECT, width: 3 } }), showlegend: false }], {
        showlegend: true, height: 380, shapes: [{ type: "line", x0: 0, x1: 1, xref: "paper", y0: -Math.log10(0.05), y1: -Math.log10(0.05), line: { color: GREY, dash: "dot", width: 1 } }],
        xaxis: axis("mean average precision", { range: [0, 1.04] }), yaxis: axis("-log10 p", { rangemode: "tozero" }) });
      const sure = all.filter((i) => found.q[i] < 0.05).length;
      note("activity", `${sure} of ${all.length} ${found.treatment ? "treatments" : "classes"} have q < 0.05.` + mine.map((i) => ` ${called[i]}: mAP ${said(found.map[i])}, p = ${said(found.p[i])}, q = ${said(found.q[i])}, n = ${found.n[i]}.`).join(""));
    },
    marks: true,
  });

  // --- doses --------------------------------------------------------------------------------------------------------------------
  figure("doses", {
    controls: ["doses-compound"],
    fill(set) { fill($("doses-compound"), [["", "the lowest EC50 first"], ...(set.doses.compounds || []).map((one, i) => [String(i), one.compound])]); },
    draw(set) {
      const found = set.doses;
      $("doses-compound").closest(".controls").hidden = Boolean(found.why);
      if (found.why) return nothing("doses", found.why);
      const chosen = $("doses-compound").value;
      const mine = state.treatment === null ? null : set.treatments.compound[state.treatment];
      let shown = range(found.compounds.length);
      const first = chosen !== "" ? Number(chosen) : mine === null ? -1 : found.compounds.findIndex((one) => one.compound === mine);
      if (first >= 0) shown = [first, ...shown.filter((i) => i !== first)];
      const unit = DATA.columns.concentration, [low, middle, high] = found.control;
      for (let k = 0; k < 6; k++) {
        const div = $(`doses-plot${k || ""}`), one = found.compounds[shown[k]];
        div.hidden = !one;
        if (!one) continue;
        const colour = one.compound === mine ? SELECT : BLUE;
        const top = Math.max(high, ...one.y.filter((v) => v !== null));
        plot(div, [
          { x: one.x, y: one.y, mode: "markers", marker: { color: colour, size: 6, opacity: 0.75 }, hovertemplate: "%{x}: %{y:.3g}<extra></extra>" },
          { x: one.grid, y: one.curve, mode: "lines", line: { color: INK, width: 1.5, dash: one.why ? "dot" : "solid" }, hoverinfo: "skip" },
          ...(one.ec50 === null ? [] : [{ x: [one.ec50], y: [0], mode: "markers", marker: { color: INK, symbol: "line-ns-open", size: 12, line: { width: 2 } },
            error_x: one.low === null ? undefined : { type: "data", symmetric: false, array: [one.high - one.ec50], arrayminus: [one.ec50 - one.low], color: INK, thickness: 1.5 },
            hovertemplate: `EC50 ${said(one.ec50)}<extra></extra>` }]),
        ], { height: 250, title: head(plain(clipped(one.compound, 34))), margin: { l: 44, r: 8, t: 28, b: 48 },
          shapes: [{ type: "rect", x0: 0, x1: 1, xref: "paper", y0: low, y1: high, fillcolor: "#ececec", line: { width: 0 }, layer: "below" },
            { type: "line", x0: 0, x1: 1, xref: "paper", y0: middle, y1: middle, line: { color: GREY, width: 1 }, layer: "below" }],
          xaxis: axis(plain(unit), { ...decades(one.x), type: "log", range: [Math.log10(Math.min(...one.x)) - 0.25, Math.log10(Math.max(...one.x)) + 0.25] }),
          yaxis: axis("distance from controls", { range: [-0.03 * top, top * 1.06] }),
          annotations: [{ text: one.ec50 === null ? plain(clipped(one.why.split(",")[0], 46)) : `EC50 ${said(one.ec50)}` + (one.low === null ? "" : ` (${said(one.low)} to ${said(one.high)})`),
            x: 0, xref: "paper", xanchor: "left", y: 1, yref: "paper", yanchor: "top", showarrow: false, font: { size: 11 } }] });
      }
      const sure = found.compounds.filter((one) => one.ec50 !== null).length;
      note("doses", `${found.compounds.length} compounds, ${sure} with an EC50; ${found.n_controls} control wells.` +
        (found.compounds.length > found.fits ? ` Curves are fitted to the ${found.fits} with the largest response.` : "") +
        (found.compounds.length > 6 ? " Six are drawn; choose a compound to see it first." : ""));
    },
    marks: true,
  });

  // --- cells -------------------------------------------------------------------------------------------------------------------
  figure("cells", {
    draw(set) {
      const found = set.montages, div = $("cells-plot");
      div.replaceChildren();
      if (found.why) return nothing("cells", found.why);
      const strips = new Map(found.strips);
      const strip = (key, words) => {
        const box = make("div", undefined, div), image = document.createElement("img");
        box.className = "strip";
        make("p", words, box);
        image.src = `data:image/jpeg;base64,${DATA.texts[strips.get(key)]}`;
        image.alt = `Cells of ${words}`;
        box.appendChild(image);
      };
      if (strips.has("")) strip("", "controls");
      const there = [...strips.keys()].filter(Boolean), mine = state.treatment === null ? null : name(state.treatment);
      const shown = mine !== null && strips.has(mine) ? [mine] : mine !== null ? [] : there.slice(0, 6);
      for (const key of shown) strip(key, key);
      const words = mine !== null && !shown.length ? `No cells of ${mine} are in this file. ` : mine === null && there.length > 6 ? "Six treatments are shown; choose one to see it. " : "";
      note("cells", `${words}${found.about ? found.about + " " : ""}The file has cells of ${there.length} treatment${there.length === 1 ? "" : "s"}${found.given > there.length ? `, of ${found.given}` : ""}.`);
    },
    marks: true,
  });

  // --- training -------------------------------------------------------------------------------------------------------------------
  figure("training", {
    draw(set) {
      const found = set.training;
      if (found.why) return nothing("training", found.why);
      const line = (key, words, colour, more) => ({ x: found.epoch, y: found[key], name: words, mode: "lines+markers", line: { color: colour }, marker: { size: 5 }, hovertemplate: "epoch %{x}: %{y:.3g}", ...more });
      const grey = { marker: { symbol: "square-open", size: 6 } };
      const two = (key) => [line(key, "training", BLUE), line(`val_${key}`, "validation", GREY, grey)].filter((one) => one.y);
      plot($("training-plot"), two("loss"), { height: 280, title: head("Loss"), showlegend: true, xaxis: axis("epoch"), yaxis: axis("") });
      plot($("training-plot1"), two("accuracy"), { height: 280, title: head("Accuracy"), showlegend: true, xaxis: axis("epoch"), yaxis: axis("", { rangemode: "tozero" }) });
      if (found.learning_rate) plot($("training-plot2"), [line("learning_rate", "", BLUE)], { height: 280, title: head("Learning rate"), xaxis: axis("epoch"), yaxis: axis("", { rangemode: "tozero" }) });
      note("training", "");
    },
  });

  // --- the page --------------------------------------------------------------------------------------------------------------------
  // a figure is drawn when it comes into sight, and again when what it shows has changed
  function figure(id, parts) { figures.push({ id, controls: [], fill() {}, changed() {}, marks: false, stale: true, visible: false, ...parts }); }
  function refresh(one) {
    if (!one.visible || !one.stale) return;
    one.stale = false;
    one.draw(state.set);
    $(one.id).dataset.drawn = "now";
  }
  function redraw(one) {
    one.stale = true;
    $(one.id).dataset.drawn = "before";
    refresh(one);
  }
  function select(t) {
    if (t === state.treatment) return;
    state.treatment = t;
    figures.filter((one) => one.marks).forEach(redraw);
    $("treatment").value = t === null ? "" : name(t);
    $("clear").disabled = t === null;
    const box = $("chosen");
    box.replaceChildren();
    if (t === null) return;
    make("b", name(t), box);
    const set = state.set, words = [set.treatments.moa[t], set.treatments.control[t] ? "control" : "", `${set.treatments.wells[t]} wells`];
    const r = (set.replicates.treatment || []).indexOf(t), a = (set.activity.treatment || []).indexOf(t);
    if (r >= 0) words.push(`replicates correlate by ${said(set.replicates.median[r])}`);
    if (a >= 0) words.push(`mAP against controls ${said(set.activity.map[a])}, q ${said(set.activity.q[a])}`);
    make("span", ": " + words.filter(Boolean).join(", "), box);
  }
  function open(at) {
    const kept = state.treatment === null ? null : name(state.treatment);
    state.set = DATA.sets[at];
    state.treatment = null;
    const list = $("treatments");
    list.replaceChildren();
    for (const word of state.set.treatments.name) make("option", undefined, list).value = word;
    for (const one of figures) one.fill(state.set);
    const again = kept === null ? -1 : state.set.treatments.name.indexOf(kept);
    $("chosen").replaceChildren();
    $("treatment").value = "";
    $("clear").disabled = true;
    if (again >= 0) select(again);
    figures.forEach(redraw);
  }
  fill($("set"), DATA.sets.map((set, i) => [String(i), set.name]));
  $("set").addEventListener("change", () => open(Number($("set").value)));
  $("treatment").addEventListener("change", () => {
    const word = $("treatment").value, at = state.set.treatments.name.indexOf(word);
    if (at >= 0) select(at);
    else if (word === "") select(null);
    else {
      const close = state.set.treatments.name.findIndex((known) => known.toLowerCase().startsWith(word.toLowerCase()));
      if (close >= 0) select(close);
      else $("chosen").textContent = `No treatment is called ${word}.`;
    }
  });
  $("clear").addEventListener("click", () => select(null));
  for (const one of figures) for (const id of one.controls) {
    $(id).addEventListener("change", () => { one.changed(state.set, id); redraw(one); });
  }
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const one = figures.find((known) => known.id === entry.target.id);
      one.visible = entry.isIntersecting;
      refresh(one);
    }
  }, { rootMargin: "300px" });
  open(0);
  for (const one of figures) seen.observe($(one.id));
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    figures.filter((one) => one.id === "plates" || one.id === "similarity").forEach(redraw);
  });
})();
