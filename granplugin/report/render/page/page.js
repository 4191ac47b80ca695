"use strict";
// Draws what the data block holds. Every text goes in by textContent: names are anybody's.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const number = (value) => (value === "inf" ? Infinity : value === "-inf" ? -Infinity : value);

  function made(tag, text, kind) {
    const element = document.createElement(tag);
    if (text !== undefined && text !== null) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  }

  function put(parent, ...children) {
    children.forEach((child) => child && parent.append(child));
    return parent;
  }

  function fill(select, pairs, chosen) {
    pairs.forEach(([value, text]) => {
      const option = made("option", text);
      option.value = value;
      option.selected = value === chosen;
      select.append(option);
    });
  }

  function shown(value, digits = 3) {
    value = number(value);
    if (value === null || value === undefined) return "";
    if (value === Infinity) return "exact";
    if (value === -Infinity) return "none";
    const size = Math.abs(value);
    if (size >= 100 || Number.isInteger(value)) return Math.round(value).toLocaleString("en-US");
    return size >= 0.01 || size === 0 ? value.toFixed(size >= 10 ? 1 : 2) : value.toPrecision(digits);
  }

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  // ---------------------------------------------------------------- plots
  const drawn = [];

  function draw(element, traces, layout) {
    const go = () => Plotly.react(element, traces(), {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--text"), size: 12 }, margin: { l: 60, r: 20, t: 30, b: 50 },
      hoverlabel: { align: "left" }, modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--accent") },
      ...layout(),
    }, { responsive: true, displaylogo: false, displayModeBar: element.id === "plane-plot" ? "hover" : false,
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] });
    go();
    drawn.push([element, go]);
  }

  function axis(title, more) {
    return { title: { text: title }, gridcolor: colour("--line"), zerolinecolor: colour("--line"), ...more };
  }

  // Plotly reads a few tags in its texts; names must not become any.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  // ---------------------------------------------------------------- accuracy against cost
  function front(points, less) {
    const gain = (point) => (less ? -point.y : point.y);
    const sorted = [...points].sort((a, b) => a.x - b.x || gain(b) - gain(a));
    let best = -Infinity;
    return sorted.filter((point) => gain(point) > best && (best = gain(point), true));
  }

  const arms = (of, figure, value) => ({ type: "data", symmetric: false, color: colour("--soft"), thickness: 1, width: 3,
    array: of.map((p) => (figure(p).high === null ? 0 : figure(p).high - value(p))),
    arrayminus: of.map((p) => (figure(p).low === null ? 0 : value(p) - figure(p).low)) });
  const called = (of) => plain(`${of?.title ?? ""} (${of?.better ?? "more"} is better)`);

  function plane() {
    if (!at("plane")) return;
    fill(at("plane-x"), data.x.map((each) => [each.key, each.title]), (data.x[0] || {}).key);
    fill(at("plane-y"), data.y.map((each) => [each.key, each.title]), (data.y[0] || {}).key);
    const redraw = () => {
      const x = at("plane-x").value, y = at("plane-y").value;
      const there = data.spots.filter((spot) => spot.figures[x] && spot.figures[y]);
      const points = there.map((spot) => {
        const up = spot.figures[y], across = spot.figures[x];
        return { spot, x: across.value, y: number(up.value), up, across };
      }).filter((point) => Number.isFinite(point.y));
      const left = data.spots.filter((spot) => !points.some((point) => point.spot === spot));
      at("plane-said").textContent = left.length
        ? `Not drawn, since one of the two is not known or not finite: ${left.map((spot) => spot.name).join(", ")}.` : "";
      const style = { baseline: ["square-open", "--soft"], recipe: ["star", "--accent"], variant: ["circle", "--low"] };
      draw(at("plane-plot"), () => {
        const edge = front(points.filter((point) => !point.spot.wrong), data.y.find((each) => each.key === y)?.better === "less");
        const traces = [{
          x: edge.map((p) => p.x), y: edge.map((p) => p.y), mode: "lines", name: "front",
          line: { shape: "hv", dash: "dot", color: colour("--soft"), width: 1 }, hoverinfo: "skip",
        }];
        // Few variants have a name in the legend each, many by their kind; the others tell on hover.
        const few = points.length <= 12;
        const series = few ? points.map((point) => [point]) : Object.keys(style).map((kind) => points.filter((point) => point.spot.kind === kind));
        series.filter((of) => of.length).forEach((of, index) => {
          const [symbol, shade] = style[of[0].spot.kind];
          const name = (of[0].spot.wrong ? "WRONG " : "") + of[0].spot.name;
          traces.push({
            x: of.map((p) => p.x), y: of.map((p) => p.y), name: few ? `${index + 1} ${plain(name)}` : of[0].spot.kind, mode: few ? "markers+text" : "markers",
            text: few ? [`${index + 1}`] : [], textposition: index % 2 ? "bottom right" : "top left", cliponaxis: false,
            hovertext: of.map((p) => [p.spot.name, ...p.spot.says].map(plain).join("<br>")), hoverinfo: "text+x+y",
            marker: { symbol, size: 12, color: of.map((p) => colour(p.spot.wrong ? "--bad" : shade)) },
            error_y: arms(of, (p) => p.up, (p) => p.y), error_x: arms(of, (p) => p.across, (p) => p.x),
          });
        });
        return traces;
      }, () => ({
        xaxis: axis(called(data.x.find((each) => each.key === x))),
        yaxis: axis(called(data.y.find((each) => each.key === y))),
        legend: { orientation: "h", y: 1.03, yanchor: "bottom" }, showlegend: true,
      }));
    };
    ["plane-x", "plane-y"].forEach((id) => at(id).addEventListener("change", redraw));
    redraw();
  }

  // ---------------------------------------------------------------- layers
  const cividis = [[0, 34, 78], [33, 62, 108], [87, 93, 109], [124, 123, 120], [165, 156, 116], [210, 192, 96], [254, 232, 56]];

  function shade(part) {
    const place = Math.min(Math.max(part, 0), 1) * (cividis.length - 1), low = Math.floor(place);
    const next = cividis[Math.min(low + 1, cividis.length - 1)];
    const rgb = cividis[low].map((value, i) => Math.round(value + (next[i] - value) * (place - low)));
    return [`rgb(${rgb.join(",")})`, 0.3 * rgb[0] + 0.6 * rgb[1] + 0.1 * rgb[2] > 120 ? "#111" : "#fff"];
  }

  const variants = [...new Set(data.layers.flatMap((layer) => layer.decided.map((each) => each.variant)))];
  const heads = [...new Map(data.layers.flatMap((layer) => layer.cells.map((cell) => [`${cell.role}: ${cell.setting}`, [cell.role, cell.setting]]))).values()]
    .sort(([a], [b]) => (a === b ? 0 : b.localeCompare(a)));
  const roles = [...new Set(data.layers.flatMap((layer) => layer.decided.map((each) => each.role)))];
  const ASKED = "asked";
  const quantized = (of) => of !== undefined && of.asked.split(",")[0] !== "float";
  // A batch norm, say, that no variant quantizes; a product that stays float is told.
  const idle = (layer) => layer.cells.length === 0 && !layer.decided.some((each) => each.role === "weight" || quantized(each));
  let sorted = null;
  let open = null;

  function columnsOf(measure) {
    const columns = [{ head: "layer", value: (layer) => layer.name }, { head: "type", value: (layer) => [layer.type, ...layer.traits].join(", ") }];
    if (data.layers.some((layer) => layer.loss)) {
      columns.push({ head: `loss alone, ${data.loss}`, loss: true, value: (layer) => (layer.loss ? number(layer.loss.value) : null) });
    }
    const variant = at("layer-variant").value;
    const of = (layer, role) => layer.decided.find((each) => each.variant === variant && each.role === role);
    const used = roles.filter((role) => data.layers.some((layer) => quantized(of(layer, role))));
    if (measure === ASKED) {
      used.forEach((role) => columns.push({ head: role, decided: role, value: (layer) => of(layer, role)?.asked ?? null }));
    } else {
      heads.forEach(([role, setting]) => columns.push({
        head: setting, group: role, cell: `${role}: ${setting}`,
        value: (layer) => {
          const cell = layer.cells.find((each) => each.role === role && each.setting === setting);
          return cell ? number(cell.figures[measure]) : null;
        },
      }));
    }
    return columns;
  }

  const keyOf = (column) => column.cell || column.head;

  function heat() {
    const measure = at("measure").value, columns = columnsOf(measure);
    const wanted = at("layer-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const spoken = (layer) => [layer.name, layer.type, ...layer.traits, ...layer.decided.flatMap((d) => [d.rule, d.asked])].join(" ").toLowerCase();
    const all = data.layers.filter((layer) => at("layer-idle").checked || !idle(layer));
    let layers = all.filter((layer) => wanted.every((word) => spoken(layer).includes(word)));
    if (sorted) {
      const column = columns.find((each) => keyOf(each) === sorted.head);
      if (column) {
        const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
        layers = [...layers].sort((a, b) => {
          const [x, y] = [column.value(a), column.value(b)];
          if (x === null || y === null) return (x === null) - (y === null);
          return sorted.down ? order(y, x) : order(x, y);
        });
      }
    }
    const known = data.layers.flatMap((layer) => layer.cells.map((cell) => number(cell.figures[measure]))).filter(Number.isFinite);
    const decibels = ["output", "both", "network"].includes(measure);
    const low = decibels ? 0 : Math.min(...known), high = decibels ? 50 : Math.max(...known);
    const less = (data.measures.find((each) => each.key === measure) || {}).better === "less";
    const losses = data.layers.map((layer) => (layer.loss ? number(layer.loss.value) : 0)).filter(Number.isFinite);
    const most = Math.max(...losses, 1e-9);

    const table = at("heat");
    table.replaceChildren();
    const groups = [...new Set(columns.map((each) => each.group).filter(Boolean))];
    const row = made("tr"), below = groups.length ? made("tr", null, "below") : null;
    columns.forEach((column) => {
      if (column.group && groups[0] === column.group) {
        const span = made("th", groups.shift(), "group");
        span.colSpan = columns.filter((each) => each.group === column.group).length;
        span.scope = "colgroup";
        row.append(span);
      }
      const head = made("th", column.head, column.cell || column.loss ? "sorts" : "sorts text");
      const key = keyOf(column);
      head.scope = "col";
      head.tabIndex = 0;
      if (below && !column.group) head.rowSpan = 2;
      if (sorted && sorted.head === key) head.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
      head.dataset.key = key;
      const sort = () => {
        const numeric = column.loss || column.cell;
        sorted = { head: key, down: sorted && sorted.head === key ? !sorted.down : Boolean(numeric) };
        heat();
        [...table.querySelectorAll("th")].find((each) => each.dataset.key === key)?.focus();
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), sort()));
      (column.group ? below : row).append(head);
    });
    const body = made("tbody");
    layers.forEach((layer) => {
      const line = made("tr", null, open === layer.name ? "open" : "");
      columns.forEach((column, index) => {
        const cell = made(index ? "td" : "th");
        const value = column.value(layer);
        if (!index) {
          const name = made("button", layer.name, "name");
          name.type = "button";
          name.title = layer.why;
          name.addEventListener("click", () => { location.hash = `layer=${encodeURIComponent(layer.name)}`; });
          cell.append(name);
        } else if (column.loss) {
          cell.textContent = value === null ? "" : shown(value);
          if (layer.loss && layer.loss.low !== null) cell.title = `${shown(layer.loss.low)} to ${shown(layer.loss.high)} (95 %)\n${layer.why}`;
          if (value > 0) {
            const bar = made("i", null, "bar");
            bar.style.width = `${Math.max(1, 60 * value / most)}px`;
            cell.append(bar);
          }
        } else if (column.decided) {
          const of = layer.decided.find((each) => each.variant === at("layer-variant").value && each.role === column.decided);
          const told = of ? Object.entries(of.engines) : [];
          const bad = told.find(([, each]) => each[1] === "bad") || told.find(([, each]) => each[1] === "doubtful");
          cell.textContent = value || "";
          cell.className = "text";
          if (of) cell.title = [`${of.rule} (${of.where})`, ...told.map(([engine, each]) => `${engine}: ${each[0]}`)].join("\n");
          if (bad) { cell.classList.add(bad[1][1]); cell.textContent += bad[1][1] === "bad" ? " ✗" : " ?"; }
          else if (told.length) cell.textContent += " ✓";
        } else if (column.cell) {
          const of = layer.cells.find((each) => `${each.role}: ${each.setting}` === column.cell);
          cell.textContent = value === null ? "" : shown(value);
          if (of) {
            cell.title = [column.cell, of.says, of.start ? "the recipe's own" : "", layer.why].filter(Boolean).join("\n");
            cell.classList.add("hot");
            cell.addEventListener("click", () => { location.hash = `layer=${encodeURIComponent(layer.name)}`; });
            if (of.start) cell.classList.add("start");
            if (of.chosen) cell.classList.add("chosen");
          }
          if (value !== null && !Number.isNaN(value)) {
            const place = value === Infinity ? 1 : value === -Infinity ? 0 : (value - low) / (high - low || 1);
            [cell.style.background, cell.style.color] = shade(less ? 1 - place : place);
          }
        } else {
          cell.textContent = value === null ? "" : value;
          cell.className = "text";
        }
        line.append(cell);
      });
      body.append(line);
    });
    put(table, put(made("thead"), row, below), body);
    const hidden = data.layers.length - all.length;
    at("layer-count").textContent = `${layers.length} of ${data.layers.length} layers` + (hidden ? `; ${hidden} that nothing quantizes are not listed` : "");
    at("heat-key").textContent = measure === ASKED
      ? "✓ as asked on every engine that tells, ✗ not, ? not known. A click on a layer opens it."
        + (heads.length ? "" : " `granplugin analyze` adds what other settings would give.")
      : "Solid frame: what the advice comes to; dashed: the recipe's own where the advice changes it. Bright is better. A click opens the layer.";
  }

  function layerOf(name) {
    const layer = data.layers.find((each) => each.name === name);
    const panel = at("layer");
    if (!layer || !panel) return;
    open = name;
    heat();
    panel.hidden = false;
    panel.replaceChildren(made("h3", layer.name));
    put(panel, made("p", [layer.type, ...layer.traits].join(", "), "said"));
    const title = panel.querySelector("h3");
    title.tabIndex = -1;
    if (layer.why) put(panel, made("p", layer.why));
    const plots = put(panel, made("div", null, "plots")).lastChild;
    if (layer.ranges) channelPlot(plots, layer.ranges);
    if (layer.ranges && layer.ranges.input) inputPlot(plots, layer.ranges);
    decisions(panel, layer);
    settings(panel, layer);
    findings(panel, layer);
    kernels(panel, layer);
    title.focus({ preventScroll: true });
    panel.scrollIntoView({ block: "start" });
  }

  function channelPlot(parent, ranges) {
    if (!ranges.before.length) return;
    const element = plotIn(parent, "Weight: largest |value| by output channel");
    const label = ranges.before.map((_, i) => (ranges.group > 1 ? `${i * ranges.group} to ${(i + 1) * ranges.group - 1}` : `${i}`));
    const series = (name, y, mark, shadeName) => ({
      name, y: y.map((value) => (value > 0 ? value : null)), text: label, mode: "markers", type: "scatter",
      hovertemplate: "channel %{text}: %{y:.4g}", marker: { symbol: mark, size: 6, color: colour(shadeName) },
    });
    draw(element, () => [
      series("as the model has it", ranges.before, "circle-open", "--soft"),
      ...(ranges.after ? [series("batch norm folded in", ranges.after, "circle", "--accent")] : []),
    ], () => ({
      yaxis: axis("largest |w|", { type: "log", dtick: 1 }), xaxis: axis("output channel"), legend: { orientation: "h", y: 1.03, yanchor: "bottom" }, showlegend: true,
    }));
  }

  function plotIn(parent, title) {
    const element = made("div", null, "plot");
    put(parent, put(made("div"), made("h4", title), element));
    return element;
  }

  // Okabe and Ito's colours, told apart by the colour-blind; the dashes by a printer too.
  const lines = [["#d55e00", "solid"], ["#0072b2", "dash"], ["#009e73", "dot"], ["#cc79a7", "dashdot"], ["#e69f00", "longdash"], ["#56b4e9", "longdashdot"]];
  const DECADES = 2.5;

  function inputPlot(parent, ranges) {
    const { edges, counts } = ranges.input;
    const clips = Object.entries(ranges.clips).sort(([, a], [, b]) => b - a);
    const most = Math.max(edges[edges.length - 1], ...clips.map(([, value]) => value)), least = most / 10 ** DECADES;
    const small = counts.reduce((sum, count, i) => sum + (edges[i + 1] <= least ? count : 0), 0);
    const all = counts.reduce((sum, count) => sum + count, 0), top = Math.max(...counts);
    const element = plotIn(parent, "Input: |x| over the calibration data, and where each calibrator clips it");
    draw(element, () => [{
      type: "bar", x: counts.map((_, i) => Math.sqrt(Math.max(edges[i], edges[i + 1] / 1.2) * edges[i + 1])), y: counts,
      width: counts.map((_, i) => edges[i + 1] - Math.max(edges[i], edges[i + 1] / 2)), showlegend: false,
      marker: { color: colour("--moves") }, hovertemplate: "|x| about %{x:.3g}: %{y} values<extra></extra>",
    }, ...clips.map(([name, value], i) => ({
      x: [value, value], y: [0.5, 2 * top], mode: "lines", name: `${plain(name)}: ${shown(value)}`, hoverinfo: "name+x",
      line: { color: lines[i % lines.length][0], dash: lines[i % lines.length][1], width: 2 },
    }))], () => ({
      xaxis: axis(`|x|${small ? `; ${(100 * small / all).toPrecision(2)} % of the values are smaller than shown` : ""}`,
        { type: "log", range: [Math.log10(least), Math.log10(most * 1.1)] }),
      yaxis: axis("values", { type: "log", dtick: 2 }), bargap: 0, showlegend: true, legend: { orientation: "h", y: 1.03, yanchor: "bottom", font: { size: 11 } },
    }));
  }

  function tableOf(parent, title, heads, rows) {
    if (!rows.length) return;
    const table = made("table"), head = made("tr"), body = made("tbody");
    heads.forEach((each) => head.append(made("th", each)));
    rows.forEach((cells) => {
      const line = made("tr");
      cells.forEach((cell) => line.append(cell instanceof Node ? cell : made("td", cell, /^-?[\d.,]+$/.test(cell) ? "figure" : "")));
      body.append(line);
    });
    put(parent, made("h4", title), put(made("div", null, "wide"), put(table, put(made("thead"), head), body)));
    sortable(table);
  }

  function decisions(panel, layer) {
    // What no variant quantizes says nothing.
    const asked = new Set(layer.decided.filter((each) => each.asked.split(",")[0] !== "float").map((each) => each.role));
    layer = { ...layer, decided: layer.decided.filter((each) => asked.has(each.role)) };
    const engines = [...new Set(layer.decided.flatMap((each) => Object.keys(each.engines)))];
    tableOf(panel, "What is asked, and what engines made of it", ["variant", "operand", "asked", "rule", "where", ...engines],
      layer.decided.map((each) => [each.variant, each.role, each.asked, each.rule, each.where,
        ...engines.map((engine) => {
          const told = each.engines[engine];
          return told ? made("td", told[0], told[1]) : "";
        })]));
    const rules = new Map(layer.decided.filter((each) => each.text).map((each) => [each.where, each.text]));
    rules.forEach((text, where) => put(panel, made("p", where, "said"), put(made("pre"), made("code", text))));
  }

  function settings(panel, layer) {
    const measures = data.measures;
    tableOf(panel, "Every setting that was tried", ["operand", "setting", ...measures.map((each) => each.title), "engines"],
      layer.cells.map((cell) => [cell.role, cell.setting + (cell.start ? " (the recipe's)" : ""),
        ...measures.map((each) => shown(cell.figures[each.key])), cell.says]));
  }

  function findings(panel, layer) {
    tableOf(panel, "What costs, and what to write instead", ["engine", "variant", "code", "costs", "instead", "to paste below rules:"],
      layer.findings.map((each) => [each.engine, each.variant, each.code, each.says, each.instead,
        each.rule ? put(made("td"), made("code", each.rule)) : ""]));
  }

  function kernels(panel, layer) {
    const asked = (variant) => layer.decided.filter((each) => each.variant === variant && quantized(each))
      .map((each) => `${each.role} ${each.asked}`).join("; ") || "float";
    const rows = data.plans.flatMap((plan) => plan.kernels
      .filter((kernel) => kernel.nodes.some((node) => node === layer.name || node.startsWith(`${layer.name}/`)))
      .map((kernel) => [plan.engine, plan.variant, asked(plan.variant), kernel.arithmetic, kernel.bytes === null ? "" : (kernel.bytes / 1e6).toFixed(3), kernel.name, kernel.nodes.join(", ")]));
    tableOf(panel, "Its kernels: what is asked, and what they read and write", ["engine", "variant", "asked", "reads > writes", "MB", "kernel", "ONNX nodes"], rows);
  }

  function layersPart() {
    if (!at("layers")) return;
    const asks = variants.length ? [[ASKED, "what a variant asks, and what became of it"]] : [];
    fill(at("measure"), [...data.measures.map((each) => [each.key, each.title]), ...asks], (data.measures[0] || {}).key);
    at("measure-label").hidden = data.measures.length === 0;
    at("idle-label").hidden = !data.layers.some(idle);
    fill(at("layer-variant"), variants.map((name) => [name, name]), variants[variants.length - 1]);
    const recipe = data.spots.find((spot) => spot.kind === "recipe");
    if (recipe && variants.includes(recipe.name)) at("layer-variant").value = recipe.name;
    const shownFor = () => { at("variant-label").hidden = at("measure").value !== ASKED; };
    shownFor();
    at("measure").addEventListener("change", shownFor);
    ["measure", "layer-variant", "layer-idle"].forEach((id) => at(id).addEventListener("change", heat));
    at("layer-filter").addEventListener("input", heat);
    heat();
  }

  // ---------------------------------------------------------------- engine plans
  function plansPart() {
    if (!at("plans")) return;
    const engines = [...new Set(data.plans.map((plan) => plan.engine))];
    fill(at("plan-engine"), engines.map((name) => [name, name]), engines[0]);
    const choose = () => {
      const names = data.plans.filter((plan) => plan.engine === at("plan-engine").value).map((plan) => plan.variant);
      // One plan alone has nothing beside it.
      at("plans").classList.toggle("alone", names.length < 2);
      const recipe = (data.spots.find((spot) => spot.kind === "recipe") || {}).name;
      ["plan-a", "plan-b"].forEach((id, index) => {
        at(id).replaceChildren();
        fill(at(id), names.map((name) => [name, name]), index ? (names.includes(recipe) ? recipe : names[names.length - 1]) : names.find((name) => name.startsWith("tensorrt@")) || names[0]);
      });
      compare();
    };
    const own = (kernel) => kernel.nodes.filter((node) => !/\/(Dequantize|Quantize)Linear/.test(node));
    const titled = (kernel) => own(kernel)[0] || kernel.nodes[0] || kernel.name;
    const megabytes = (bytes) => (bytes === null ? "size not known" : `${(bytes / 1e6).toFixed(3)} MB`);
    // What two kernels of one place do otherwise, in words.
    const apart = (a, b) => [
      own(a).join() === own(b).join() ? "" : "fused nodes",
      a.arithmetic === b.arithmetic ? "" : "arithmetic",
      a.bytes === b.bytes ? "" : "bytes",
    ].filter(Boolean);
    const compare = () => {
      const alone = at("plans").classList.contains("alone");
      const found = ["plan-a", "plan-b"].slice(alone ? 1 : 0).map((id) => data.plans.find((plan) => plan.engine === at("plan-engine").value && plan.variant === at(id).value));
      const most = Math.max(1, ...found.flatMap((plan) => (plan ? plan.kernels.map((kernel) => kernel.bytes || 0) : [])));
      const only = at("plan-changed").checked;
      const both = at("plan-both");
      both.replaceChildren();
      found.forEach((plan) => {
        const sum = !plan ? "" : plan.kernels.some((kernel) => kernel.bytes === null) ? "not all sizes known"
          : `${(plan.kernels.reduce((total, kernel) => total + kernel.bytes, 0) / 1e6).toFixed(1)} MB`;
        both.append(made("div", plan ? `${plan.variant}: ${plan.kernels.length} kernels, ${sum}` : "", "head"));
      });
      const bar = (kernel, differs, what) => {
        if (!kernel) return made("div", null, "kernel none");
        const line = made("div", null, `kernel ${kernel.does}${differs ? " differs" : ""}`);
        const length = made("i");
        length.style.width = `${100 * (kernel.bytes || 0) / most}%`;
        line.title = [kernel.name, kernel.arithmetic, megabytes(kernel.bytes), ...kernel.nodes].join("\n");
        return put(line, length, made("span", `${titled(kernel)}  ${kernel.arithmetic}`), what ? made("em", what) : null);
      };
      const same = alone || found[0] === found[1];
      let differing = 0;
      aligned(found[0]?.kernels ?? [], (alone ? found[0] : found[1])?.kernels ?? [], (kernel) => `${kernel.does} ${titled(kernel)}`).forEach(([a, b]) => {
        const what = same ? [] : a && b ? apart(a, b) : ["only here"];
        if (what.length) differing += 1;
        if (only && !what.length) return;
        both.append(bar(a, what.length > 0, a && !b ? "only here" : ""));
        if (!alone) both.append(bar(b, what.length > 0, b ? what.join(", ") : ""));
      });
      at("plan-said").textContent = same ? "" : `${differing} places differ, each marked ≠ with what differs.`;
    };
    at("plan-engine").addEventListener("change", choose);
    ["plan-a", "plan-b", "plan-changed"].forEach((id) => at(id).addEventListener("change", compare));
    choose();
  }

  // Pairs of both lists in order: the longest run of equal names side by side, the others alone.
  function aligned(a, b, name) {
    const [n, m] = [a.length, b.length], wide = m + 1;
    const names = [a.map(name), b.map(name)];
    const length = new Uint16Array((n + 1) * wide);
    for (let i = n - 1; i >= 0; i -= 1) {
      for (let j = m - 1; j >= 0; j -= 1) {
        length[i * wide + j] = names[0][i] === names[1][j] ? length[(i + 1) * wide + j + 1] + 1
          : Math.max(length[(i + 1) * wide + j], length[i * wide + j + 1]);
      }
    }
    const pairs = [];
    for (let i = 0, j = 0; i < n || j < m;) {
      if (i < n && j < m && names[0][i] === names[1][j]) pairs.push([a[i++], b[j++]]);
      else if (j >= m || (i < n && length[(i + 1) * wide + j] >= length[i * wide + j + 1])) pairs.push([a[i++], null]);
      else pairs.push([null, b[j++]]);
    }
    return pairs;
  }

  // ---------------------------------------------------------------- tables, links, theme
  function sortable(table) {
    const heads = [...table.querySelectorAll("thead th")];
    const body = table.tBodies[0];
    // A note spans the columns and goes with the row above it; a heading over rows forbids sorting.
    const notes = (row) => row.cells.length === 1 && row.cells[0].colSpan === heads.length && row.cells[0].tagName === "TD";
    if (!heads.length || !body || body.rows.length < 2 || [...body.rows].some((row) => row.cells.length !== heads.length && !notes(row))) return;
    heads.forEach((head, column) => {
      if (!head.textContent) return;
      head.classList.add("sorts");
      head.tabIndex = 0;
      const read = (row) => row.cells[column].textContent.trim();
      const figure = (text) => { const found = text.replace(/,/g, "").match(/^[-+]?\d*\.?\d+(e[-+]?\d+)?/i); return found ? Number(found[0]) : null; };
      const sort = () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const whole = [];
        [...body.rows].forEach((row) => (notes(row) && whole.length ? whole[whole.length - 1].push(row) : whole.push([row])));
        whole.sort(([a], [b]) => {
          const [x, y] = [figure(read(a)), figure(read(b))];
          if (x !== null && y !== null) return x - y;
          if (x !== null || y !== null) return x === null ? 1 : -1;
          return read(a).localeCompare(read(b), "en", { numeric: true });
        });
        body.append(...(down ? whole.reverse() : whole).flat());
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), sort()));
    });
  }

  function follow() {
    const found = location.hash.match(/^#layer=(.*)$/);
    if (found) layerOf(decodeURIComponent(found[1]));
  }

  at("theme").addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme === "dark" ||
      (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    drawn.forEach(([element, go]) => element.isConnected && go());
  });

  const plots = () => [...new Set(drawn.map(([element]) => element))].filter((element) => element.isConnected);
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((each) => { each.open = true; });
    plots().forEach((each) => Plotly.relayout(each, { width: Math.min(each.clientWidth, 940) }));
  });
  window.addEventListener("afterprint", () => {
    closed.forEach((each) => { each.open = false; });
    plots().forEach((each) => Plotly.relayout(each, { width: null, autosize: true }));
  });

  plane();
  layersPart();
  plansPart();
  document.querySelectorAll("#verdict table, #tables table").forEach(sortable);
  window.addEventListener("hashchange", follow);
  follow();
  performance.mark("drawn");
  document.documentElement.dataset.ready = "yes";
})();
