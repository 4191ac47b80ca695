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
      hoverlabel: { align: "left" }, ...layout(),
    }, { responsive: true, displaylogo: false, displayModeBar: element.id === "plane-plot" ? "hover" : false });
    go();
    drawn.push([element, go]);
  }

  function axis(title, more) {
    return { title: { text: title }, gridcolor: colour("--line"), zerolinecolor: colour("--line"), ...more };
  }

  // Plotly reads a few tags in its texts; names must not become any.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  // ---------------------------------------------------------------- accuracy against cost
  function front(points) {
    const sorted = [...points].sort((a, b) => a.x - b.x || b.y - a.y);
    let best = -Infinity;
    return sorted.filter((point) => point.y > best && (best = point.y, true));
  }

  function plane() {
    if (!at("plane")) return;
    fill(at("plane-x"), data.x.map((each) => [each.key, each.title]), (data.x[0] || {}).key);
    fill(at("plane-y"), data.y.map((each) => [each.key, each.title]), (data.y[0] || {}).key);
    const redraw = () => {
      const x = at("plane-x").value, y = at("plane-y").value;
      const there = data.spots.filter((spot) => spot.figures[x] && spot.figures[y]);
      const points = there.map((spot) => {
        const up = spot.figures[y];
        return { spot, x: spot.figures[x].value, y: number(up.value), up };
      }).filter((point) => Number.isFinite(point.y));
      const left = data.spots.filter((spot) => !points.some((point) => point.spot === spot));
      at("plane-said").textContent = left.length
        ? `Not drawn, since one of the two is not known or not finite: ${left.map((spot) => spot.name).join(", ")}.` : "";
      const style = { baseline: ["square-open", "--soft"], recipe: ["star", "--accent"], variant: ["circle", "--low"] };
      draw(at("plane-plot"), () => {
        const edge = front(points.filter((point) => !point.spot.wrong));
        const traces = [{
          x: edge.map((p) => p.x), y: edge.map((p) => p.y), mode: "lines", name: "front",
          line: { shape: "hv", dash: "dot", color: colour("--soft"), width: 1 }, hoverinfo: "skip",
        }];
        // Few variants have a name in the legend each, many by their kind; the others tell on hover.
        const few = points.length <= 12;
        const series = few ? points.map((point) => [point]) : Object.keys(style).map((kind) => points.filter((point) => point.spot.kind === kind));
        series.filter((of) => of.length).forEach((of, index) => {
          const [symbol, shade] = style[of[0].spot.kind];
          const called = (of[0].spot.wrong ? "WRONG " : "") + of[0].spot.name;
          traces.push({
            x: of.map((p) => p.x), y: of.map((p) => p.y), name: plain(few ? called : of[0].spot.kind), mode: few ? "markers+text" : "markers",
            text: few ? [`${index + 1}`] : [], textposition: index % 2 ? "bottom right" : "top left", cliponaxis: false,
            hovertext: of.map((p) => [p.spot.name, ...p.spot.says].map(plain).join("<br>")), hoverinfo: "text+x+y",
            marker: { symbol, size: 12, color: of.map((p) => colour(p.spot.wrong ? "--bad" : shade)) },
            error_y: { type: "data", symmetric: false, color: colour("--soft"), thickness: 1,
              array: of.map((p) => (p.up.high === null ? 0 : p.up.high - p.y)),
              arrayminus: of.map((p) => (p.up.low === null ? 0 : p.y - p.up.low)) },
          });
          if (few) traces[traces.length - 1].name = `${index + 1} ${plain(called)}`;
        });
        return traces;
      }, () => ({
        xaxis: axis(plain(at("plane-x").selectedOptions[0]?.text ?? ""), {}),
        yaxis: axis(plain(at("plane-y").selectedOptions[0]?.text ?? "")),
        legend: { orientation: "h", y: 1.12 },
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
  const heads = [...new Set(data.layers.flatMap((layer) => layer.cells.map((cell) => `${cell.role}: ${cell.setting}`)))];
  const roles = [...new Set(data.layers.flatMap((layer) => layer.decided.map((each) => each.role)))];
  let sorted = null;
  let open = null;

  function columnsOf(measure) {
    const columns = [{ head: "layer", value: (layer) => layer.name }, { head: "type", value: (layer) => [layer.type, ...layer.traits].join(", ") }];
    if (data.layers.some((layer) => layer.loss)) {
      columns.push({ head: `loss alone, ${data.loss}`, loss: true, value: (layer) => (layer.loss ? number(layer.loss.value) : null) });
    }
    const variant = at("layer-variant").value;
    roles.forEach((role) => columns.push({
      head: role, decided: role,
      value: (layer) => (layer.decided.find((each) => each.variant === variant && each.role === role) || {}).asked || null,
    }));
    heads.forEach((head) => columns.push({
      head, cell: head,
      value: (layer) => {
        const cell = layer.cells.find((each) => `${each.role}: ${each.setting}` === head);
        return cell ? number(cell.figures[measure]) : null;
      },
    }));
    return columns;
  }

  function heat() {
    const measure = at("measure").value, columns = columnsOf(measure);
    const wanted = at("layer-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const spoken = (layer) => [layer.name, layer.type, ...layer.traits, ...layer.decided.flatMap((d) => [d.rule, d.asked])].join(" ").toLowerCase();
    let layers = data.layers.filter((layer) => wanted.every((word) => spoken(layer).includes(word)));
    if (sorted) {
      const column = columns.find((each) => each.head === sorted.head);
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
    const row = made("tr");
    columns.forEach((column) => {
      const head = made("th", column.head, "sorts");
      head.scope = "col";
      head.tabIndex = 0;
      if (sorted && sorted.head === column.head) head.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
      const sort = () => {
        const numeric = column.loss || column.cell;
        sorted = { head: column.head, down: sorted && sorted.head === column.head ? !sorted.down : Boolean(numeric) };
        heat();
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), sort()));
      row.append(head);
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
          cell.style.textAlign = "left";
          if (of) cell.title = [`${of.rule} (${of.where})`, ...told.map(([engine, each]) => `${engine}: ${each[0]}`)].join("\n");
          if (bad) { cell.className = bad[1][1]; cell.textContent += bad[1][1] === "bad" ? " ✗" : " ?"; }
          else if (told.length) cell.textContent += " ✓";
        } else if (column.cell) {
          const of = layer.cells.find((each) => `${each.role}: ${each.setting}` === column.cell);
          cell.textContent = value === null ? "" : shown(value);
          if (of) {
            cell.title = [column.cell, of.says, of.start ? "the recipe's own" : "", layer.why].filter(Boolean).join("\n");
            cell.classList.add("hot");
            if (of.start) cell.classList.add("start");
            if (of.chosen) cell.classList.add("chosen");
          }
          if (value !== null && !Number.isNaN(value)) {
            const place = value === Infinity ? 1 : value === -Infinity ? 0 : (value - low) / (high - low || 1);
            [cell.style.background, cell.style.color] = shade(less ? 1 - place : place);
          }
        } else cell.textContent = value === null ? "" : value;
        line.append(cell);
      });
      body.append(line);
    });
    put(table, put(made("thead"), row), body);
    at("layer-count").textContent = `${layers.length} of ${data.layers.length} layers`;
    at("heat-key").textContent = heads.length
      ? "Solid frame: what the advice comes to; dashed: the recipe's own where the advice changes it. Bright is better. A click on a layer opens it."
      : "✓ as asked on every engine that tells, ✗ not, ? not known. A click on a layer opens it; `granplugin analyze` adds what other settings would give.";
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
    if (layer.why) put(panel, made("p", layer.why));
    const plots = put(panel, made("div", null, "plots")).lastChild;
    if (layer.ranges) channelPlot(plots, layer.ranges);
    if (layer.ranges && layer.ranges.input) inputPlot(plots, layer.ranges);
    decisions(panel, layer);
    settings(panel, layer);
    findings(panel, layer);
    kernels(panel, layer);
    panel.scrollIntoView({ block: "nearest" });
  }

  function channelPlot(parent, ranges) {
    if (!ranges.before.length) return;
    const element = put(parent, made("div", null, "plot")).lastChild;
    const label = ranges.before.map((_, i) => (ranges.group > 1 ? `${i * ranges.group} to ${(i + 1) * ranges.group - 1}` : `${i}`));
    const series = (name, y, mark, shadeName) => ({
      name, y: y.map((value) => (value > 0 ? value : null)), text: label, mode: "markers", type: "scatter",
      hovertemplate: "channel %{text}: %{y:.4g}", marker: { symbol: mark, size: 6, color: colour(shadeName) },
    });
    draw(element, () => [
      series("as the model has it", ranges.before, "circle-open", "--soft"),
      ...(ranges.after ? [series("batch norm folded in", ranges.after, "circle", "--accent")] : []),
    ], () => ({
      title: { text: "weight: largest |value| by output channel", font: { size: 13 } },
      yaxis: axis("", { type: "log" }), xaxis: axis("output channel"), legend: { orientation: "h", y: -0.25 },
    }));
  }

  function inputPlot(parent, ranges) {
    const element = put(parent, made("div", null, "plot")).lastChild;
    const { edges, counts } = ranges.input;
    const lines = Object.entries(ranges.clips);
    draw(element, () => [{
      type: "bar", x: counts.map((_, i) => Math.sqrt(Math.max(edges[i], edges[i + 1] / 1.2) * edges[i + 1])), y: counts,
      width: counts.map((_, i) => edges[i + 1] - Math.max(edges[i], edges[i + 1] / 2)),
      marker: { color: colour("--moves") }, hovertemplate: "|x| about %{x:.3g}: %{y} values<extra></extra>",
    }], () => ({
      title: { text: "input: |x| over the calibration data, and where it is clipped", font: { size: 13 } },
      xaxis: axis("|x|", { type: "log" }), yaxis: axis("values", { type: "log" }), bargap: 0,
      shapes: lines.map(([, value]) => ({ type: "line", x0: value, x1: value, yref: "paper", y0: 0, y1: 1, line: { color: colour("--bad"), width: 1.5 } })),
      annotations: lines.map(([name, value], i) => ({ x: Math.log10(value), y: 1 - 0.09 * i, yref: "paper", text: plain(name), showarrow: false, xanchor: "right", font: { size: 11 } })),
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
    tableOf(panel, "What costs, and what to write instead", ["engine", "variant", "code", "costs", "instead"],
      layer.findings.map((each) => [each.engine, each.variant, each.code, each.says, each.instead]));
  }

  function kernels(panel, layer) {
    const rows = data.plans.flatMap((plan) => plan.kernels
      .filter((kernel) => kernel.nodes.some((node) => node === layer.name || node.startsWith(`${layer.name}/`)))
      .map((kernel) => [plan.engine, plan.variant, kernel.arithmetic, kernel.bytes === null ? "" : (kernel.bytes / 1e6).toFixed(3), kernel.name, kernel.nodes.join(", ")]));
    tableOf(panel, "Its kernels", ["engine", "variant", "reads > writes", "MB", "kernel", "ONNX nodes"], rows);
  }

  function layersPart() {
    if (!at("layers")) return;
    fill(at("measure"), data.measures.map((each) => [each.key, each.title]), (data.measures[0] || {}).key);
    at("measure-label").hidden = data.measures.length === 0;
    fill(at("layer-variant"), variants.map((name) => [name, name]), variants[variants.length - 1]);
    const recipe = data.spots.find((spot) => spot.kind === "recipe");
    if (recipe && variants.includes(recipe.name)) at("layer-variant").value = recipe.name;
    at("variant-label").hidden = variants.length === 0;
    ["measure", "layer-variant"].forEach((id) => at(id).addEventListener("change", heat));
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
      const recipe = (data.spots.find((spot) => spot.kind === "recipe") || {}).name;
      ["plan-a", "plan-b"].forEach((id, index) => {
        at(id).replaceChildren();
        fill(at(id), names.map((name) => [name, name]), index ? (names.includes(recipe) ? recipe : names[names.length - 1]) : names.find((name) => name.startsWith("tensorrt@")) || names[0]);
      });
      compare();
    };
    const compare = () => {
      const found = ["plan-a", "plan-b"].map((id) => data.plans.find((plan) => plan.engine === at("plan-engine").value && plan.variant === at(id).value));
      const key = (kernel) => JSON.stringify([kernel.nodes.filter((node) => !/\/(Dequantize|Quantize)Linear/.test(node)), kernel.arithmetic, kernel.bytes]);
      const most = Math.max(1, ...found.flatMap((plan) => (plan ? plan.kernels.map((kernel) => kernel.bytes || 0) : [])));
      const only = at("plan-changed").checked;
      const both = at("plan-both");
      both.replaceChildren();
      found.forEach((plan, side) => {
        const column = made("div");
        if (plan) {
          const other = new Set((found[1 - side] || { kernels: [] }).kernels.map(key));
          const sum = plan.kernels.some((kernel) => kernel.bytes === null) ? "not all sizes known"
            : `${(plan.kernels.reduce((total, kernel) => total + kernel.bytes, 0) / 1e6).toFixed(1)} MB`;
          column.append(made("div", `${plan.variant}: ${plan.kernels.length} kernels, ${sum}`, "head"));
          plan.kernels.forEach((kernel) => {
            const differs = found[0] !== found[1] && !other.has(key(kernel));
            if (only && !differs) return;
            const line = made("div", null, `kernel ${kernel.does}${differs ? " differs" : ""}`);
            const bar = made("i");
            bar.style.width = `${100 * (kernel.bytes || 0) / most}%`;
            const main = kernel.nodes.find((node) => !/\/(Dequantize|Quantize)Linear/.test(node)) || kernel.nodes[0] || kernel.name;
            line.title = [kernel.name, kernel.arithmetic, kernel.bytes === null ? "size not known" : `${(kernel.bytes / 1e6).toFixed(3)} MB`, ...kernel.nodes].join("\n");
            column.append(put(line, bar, made("span", `${main}  ${kernel.arithmetic}`)));
          });
        }
        both.append(column);
      });
    };
    at("plan-engine").addEventListener("change", choose);
    ["plan-a", "plan-b", "plan-changed"].forEach((id) => at(id).addEventListener("change", compare));
    choose();
  }

  // ---------------------------------------------------------------- tables, links, theme
  function sortable(table) {
    const heads = [...table.querySelectorAll("thead th")];
    const body = table.tBodies[0];
    if (!heads.length || !body || body.rows.length < 2 || [...body.rows].some((row) => row.cells.length !== heads.length)) return;
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
        const rows = [...body.rows].sort((a, b) => {
          const [x, y] = [figure(read(a)), figure(read(b))];
          if (x !== null && y !== null) return x - y;
          if (x !== null || y !== null) return x === null ? 1 : -1;
          return read(a).localeCompare(read(b), "en", { numeric: true });
        });
        body.append(...(down ? rows.reverse() : rows));
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

  plane();
  layersPart();
  plansPart();
  document.querySelectorAll("#verdict table, #tables table").forEach(sortable);
  window.addEventListener("hashchange", follow);
  follow();
  performance.mark("drawn");
  document.documentElement.dataset.ready = "yes";
})();
