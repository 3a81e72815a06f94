"use strict";
// The page: list of runs, one run, two over each other, samples of a step. Data come from the server, or are in the file itself.

const POLL = 3000;
const embedded = document.getElementById("data");
const held = embedded ? JSON.parse(embedded.textContent) : null;

async function ask(path) {
  const answer = await fetch(path, { headers: { accept: "application/json" } });
  if (!answer.ok) throw new Error((await answer.text()).trim() || `the server answered ${answer.status}`);
  return answer.json();
}

const NOTHING = { steps: [], rows: [], samples: [], next: null };
const source = held
  ? {
      runs: async () => ({ runs: [held.run.run] }),
      run: async (id, rows) => (rows ? { ...held.run, start: rows, steps: [], columns: {} } : held.run),
      steps: async () => held.steps,
      samples: async (id, step) => held.samples[step] || NOTHING,
    }
  : {
      runs: () => ask("api/runs"),
      run: (id, rows, revision) => ask(`api/run/${id}?rows=${rows}&revision=${revision}`),
      steps: (id) => ask(`api/run/${id}/steps`),
      samples: (id, step, cursor) => ask(`api/run/${id}/samples?step=${step}&cursor=${cursor}`),
      differences: (a, b) => ask(`api/differences?a=${a}&b=${b}`),
    };

// A run as the charts take it, which grows by what is new.
class RunData {
  constructor(id) {
    Object.assign(this, { id, label: "", steps: [], columns: new Map(), revision: -1, config: {}, summary: {}, row: {}, health: [], more: true });
  }

  async advance() {
    const found = await source.run(this.id, this.steps.length, this.revision);
    if (found.start === 0) Object.assign(this, { steps: [], columns: new Map(), config: found.config || {}, summary: found.summary || {} });
    const before = this.steps.length;
    this.steps.push(...found.steps);
    for (const [name, values] of Object.entries(found.columns)) {
      if (!this.columns.has(name)) this.columns.set(name, new Array(before).fill(null));
      this.columns.get(name).push(...values);
    }
    for (const column of this.columns.values()) while (column.length < this.steps.length) column.push(null);
    Object.assign(this, { revision: found.revision, row: found.run, health: found.health, more: found.more, read: found.read, label: escapeOdd(found.run.name) });
  }

  last(name) {
    const column = this.columns.get(name) || [];
    for (let row = column.length - 1; row >= 0; row--) if (isNumber(column[row])) return { value: column[row], row };
    return null;
  }
}

const main = document.getElementById("main");
const live = document.getElementById("live");
let leave = () => {};

function setCrumbs(...parts) {
  document.getElementById("crumbs").replaceChildren(el("ol", {}, [["rlkit", held ? null : "#/"], ...parts].map(([text, href], index, all) =>
    el("li", {}, href && index < all.length - 1 ? foreign("a", { href }, text) : foreign("span", { "aria-current": index === all.length - 1 ? "page" : null }, text)))));
  document.title = parts.length ? `${escapeOdd(parts[parts.length - 1][0])} \u2013 rlkit` : "Runs \u2013 rlkit";
}

function stateChip(row) {
  return foreign("span", { class: "state s-" + (/^[a-z]+$/.test(row.state) ? row.state : "unknown") }, row.state);
}

function progress(row) {
  if (!isNumber(row.steps) || row.steps <= 0) return el("span", {}, escapeOdd(row.step));
  return el("span", { class: "steps" }, el("progress", { max: row.steps, value: row.step, "aria-label": "steps done" }), ` ${row.step} of ${row.steps}`);
}

// Repeats until the view is left; quick: whether there is more to read at once.
function repeat(action) {
  let ended = false, timer = null;
  const round = async () => {
    let quick = false;
    try {
      if (!document.hidden || held) quick = await action();
      live.textContent = held ? "" : "live";
      live.className = "live";
    } catch (error) {
      live.textContent = `not connected: ${error.message}`;
      live.className = "live lost";
    }
    if (!ended && !held) timer = setTimeout(round, quick ? 0 : POLL);
  };
  leave = () => { ended = true; clearTimeout(timer); };
  return round();
}

function showList() {
  setCrumbs(["Runs", "#/"]);
  const chosen = new Set();
  const compare = el("button", { type: "button", disabled: true, onclick: () => { location.hash = "#/compare/" + [...chosen].join("/"); } }, "Compare two");
  const filter = el("input", { type: "search", placeholder: "name, recipe, model, state", oninput: () => draw(rows) });
  const body = el("tbody", {});
  const empty = el("p", { class: "note", hidden: true }, "No run is here yet. This page shows it as soon as one begins.");
  let rows = [], shown = "";
  const table = el("table", { class: "runs" }, el("thead", {}, el("tr", {}, ["", "Run", "State", "Steps", "Reward", "Accuracy", "Held-out", "Updated"].map((text) =>
    el("th", { scope: "col" }, text || el("span", { class: "hidden" }, "Choose"))))), body);
  main.replaceChildren(el("div", { class: "title" }, el("h1", {}, "Runs"), el("div", { class: "controls" }, el("label", {}, "Filter ", filter), compare)), el("div", { class: "scroll" }, table), empty);
  const pick = (id, on) => {
    if (on) chosen.add(id); else chosen.delete(id);
    while (chosen.size > 2) chosen.delete(chosen.values().next().value);
    compare.disabled = chosen.size !== 2;
    for (const box of body.querySelectorAll("input")) box.checked = chosen.has(box.value);
  };
  const line = (row) => el("tr", {},
    el("td", { class: "pick" }, el("input", { type: "checkbox", value: row.id, "aria-label": "choose " + escapeOdd(row.name), onchange: (event) => pick(row.id, event.target.checked) })),
    el("th", { scope: "row" }, foreign("a", { href: "#/run/" + row.id }, row.name),
      el("span", { class: "note" }, [row.recipe, row.algorithm, row.model].filter(Boolean).map(escapeOdd).join(" \u00b7 ")),
      row.why ? foreign("span", { class: row.state === "stopped" ? "note" : "why" }, row.why) : null),
    el("td", { "data-label": "State" }, stateChip(row), row.state === "running" && row.phase ? foreign("span", { class: "note" }, " " + row.phase) : null),
    el("td", { "data-label": "Steps" }, progress(row)),
    ...[["Reward", row.reward ?? null], ["Accuracy", row.accuracy], ["Held-out", row["eval/accuracy"] ?? row["eval/loss"]]].map(([label, value]) => el("td", { class: "number", "data-label": label }, formatNumber(value))),
    el("td", { "data-label": "Updated", class: "number" }, formatAge(row["time/clock"] ?? row.updated)));
  const draw = (found) => {
    rows = found;
    const word = filter.value.toLowerCase();
    const kept = rows.filter((row) => [row.name, row.recipe, row.model, row.state, row.algorithm].some((text) => toText(text).toLowerCase().includes(word)));
    const now = JSON.stringify(kept.map((row) => [row, formatAge(row.updated)]));
    if (now === shown) return;
    shown = now;
    const active = document.activeElement, focus = body.contains(active) ? active.value || active.getAttribute("href") : null;
    body.replaceChildren(...kept.map(line));
    empty.hidden = rows.length > 0;
    pick("", false);
    if (focus) [...body.querySelectorAll("input, a")].find((node) => (node.value || node.getAttribute("href")) === focus)?.focus();
  };
  return repeat(async () => draw((await source.runs()).runs));
}

function tile(label, value, note) {
  return el("div", {}, el("dt", {}, label), el("dd", {}, value, note ? el("span", { class: "note" }, " " + note) : null));
}

function showTiles(run) {
  const sets = [...run.columns.keys()].filter((key) => /^eval\/[^/]+\/accuracy$/.test(key)), name = ["eval/accuracy", ...sets, "eval/loss"].find((key) => run.last(key));
  const tiles = [], reward = run.last("reward"), loss = run.last("loss"), held_out = name && run.last(name);
  tiles.push(tile("Steps", progress(run.row)));
  if (reward) tiles.push(tile("Reward", formatNumber(reward.value), `from ${formatNumber(run.columns.get("reward").find(isNumber))}`));
  else if (loss) tiles.push(tile("Loss", formatNumber(loss.value)));
  if (held_out) {
    const at = (end) => (run.columns.get(`${name}_${end}`) || [])[held_out.row];
    const range = isNumber(at("low")) ? `[${formatNumber(at("low"))}, ${formatNumber(at("high"))}] ` : "";
    tiles.push(tile(name === "eval/loss" ? "Held-out loss" : "Held-out accuracy", formatNumber(held_out.value), `${range}from ${formatNumber(run.columns.get(name).find(isNumber))}`));
  }
  const seconds = median((run.columns.get("time/step") || []).slice(-20)), speed = median((run.columns.get("throughput/tokens_per_second") || []).slice(-20));
  if (seconds) tiles.push(tile("Time a step", formatDuration(seconds), run.row.state === "running" ? `${formatDuration(seconds * (run.row.steps - run.row.step))} left` : ""));
  if (speed) tiles.push(tile("Tokens a second", formatNumber(speed)));
  tiles.push(tile("Updated", formatAge(run.row.updated), run.row.attempt > 1 ? `attempt ${run.row.attempt}` : ""));
  return tiles;
}

function flatten(section, prefix) {
  return Object.entries(section || {}).flatMap(([key, value]) =>
    value && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length ? flatten(value, prefix + key + ".") : [[prefix + key, value]]);
}

function showHealth(notes) {
  if (!notes.length) return [el("p", { class: "note" }, "No checked metric is outside its healthy range.")];
  return [el("ul", { class: "health" }, notes.map((note) => el("li", {}, el("p", {}, foreign("b", {}, note.metric), ` is ${formatNumber(note.value)}; healthy: ${note.healthy}. `), el("p", { class: "note" }, note.advice))))];
}

// The charts of some runs, with the step that all of them point at.
class Board {
  constructor(runs, choose) {
    Object.assign(this, { runs, smooth: 0, step: null, choose, charts: [], extra: new Map() });
    this.node = el("div", {});
    const select = el("select", { onchange: () => { this.smooth = Number(select.value); this.draw(); } }, [["0", "off"], ["5", "over 5 steps"], ["20", "over 20 steps"], ["100", "over 100 steps"]].map(([value, text]) => el("option", { value }, text)));
    const hint = choose ? "Point at a step, or use the arrow keys, for its values; click or Enter opens its samples." : "Point at a step, or use the arrow keys, for its values.";
    this.node.append(el("div", { class: "controls board" }, el("label", {}, "Smooth ", select), el("span", { class: "note" }, hint)));
    for (const [title, panels] of GROUPS) {
      const charts = panels.map((panel) => new Chart(panel, this));
      const section = el("section", { "aria-label": title }, el("h2", {}, title), el("div", { class: "grid" }, charts.map((chart) => chart.figure)));
      this.charts.push(...charts);
      this.node.append(section);
    }
    this.rest = el("div", { class: "grid" });
    this.restFilter = el("input", { type: "search", placeholder: "part of a name", oninput: () => this.drawRest() });
    this.details = el("details", { ontoggle: () => this.drawRest() }, el("summary", {}, "All other metrics"), el("div", { class: "controls" }, el("label", {}, "Filter ", this.restFilter)), this.rest);
    this.node.append(this.details);
    this.resize = () => { if (this.width !== this.node.clientWidth) { this.width = this.node.clientWidth; this.draw(); } };
    if (window.ResizeObserver) new ResizeObserver(this.resize).observe(this.node);
  }

  point(step) {
    this.step = step;
    for (const chart of [...this.charts, ...this.extra.values()]) chart.show(step);
  }

  draw() {
    for (const chart of this.charts) chart.figure.hidden = false;
    for (const section of this.node.querySelectorAll("section")) section.hidden = false;
    for (const chart of this.charts) chart.draw(this.runs);
    for (const section of this.node.querySelectorAll("section")) section.hidden = [...section.querySelectorAll("figure")].every((figure) => figure.hidden);
    this.drawRest();
  }

  drawRest() {
    if (!this.details.open) return;
    const known = new Set(["step", "attempt", "time/clock", ...this.charts.flatMap((chart) => this.runs.flatMap((run) => chart.panel.series(run).flatMap((s) => [s.name, s.low, s.high])))]);
    const names = [...new Set(this.runs.flatMap((run) => [...run.columns.keys()]))].filter((name) => !known.has(name) && name.includes(this.restFilter.value)).sort();
    this.extra = new Map(names.map((name) => [name, this.extra.get(name) || new Chart({ title: name, series: () => [one("value", name)] }, this)]));
    this.rest.replaceChildren(...[...this.extra.values()].map((chart) => chart.figure));
    for (const chart of this.extra.values()) chart.draw(this.runs);
  }
}

function showRun(id) {
  const run = new RunData(id), head = el("div", { class: "title" }), tiles = el("dl", { class: "tiles" });
  const health = el("div", {}), recipe = el("dl", { class: "facts" }), reading = el("p", { class: "note", role: "status" }), why = el("p", { class: "why big", hidden: true });
  let steps = [], drawn = -1;
  const nearest = (step) => steps.reduce((best, other) => (best === null || Math.abs(other - step) < Math.abs(best - step) ? other : best), null);
  const board = new Board([run], (step) => { if (nearest(step) !== null) location.hash = `#/run/${id}/samples/${nearest(step)}`; });
  main.replaceChildren(head, why, tiles, reading, el("section", { "aria-label": "Health" }, el("h2", {}, "Health"), health), board.node, el("details", { class: "recipe" }, el("summary", {}, "Recipe"), recipe));
  return repeat(async () => {
    await run.advance();
    const listed = await source.steps(id);
    const fresh = steps.length !== listed.steps.length;
    steps = listed.steps;
    if (drawn < 0 || fresh) {
      setCrumbs(["Runs", held ? null : "#/"], [run.row.name, null]);
      head.replaceChildren(el("div", {}, foreign("h1", {}, run.row.name), el("p", { class: "note" }, [run.row.recipe, run.row.algorithm, run.row.model].filter(Boolean).map(escapeOdd).join(" \u00b7 "))),
        el("div", { class: "controls" }, el("span", { class: "slot" }), steps.length ? el("a", { class: "button", href: `#/run/${id}/samples/${steps[steps.length - 1]}` }, "Samples") : null));
      recipe.replaceChildren(...flatten(run.config, "").map(([key, value]) => el("div", {}, foreign("dt", {}, key), foreign("dd", {}, toText(value) || "null"))));
    }
    head.querySelector(".slot").replaceChildren(stateChip(run.row), run.row.state === "running" && run.row.phase ? foreign("span", { class: "note" }, " " + run.row.phase) : "");
    why.hidden = !run.row.why;
    why.className = "big why s-" + (run.row.state === "stopped" ? "stopped" : "failed");
    why.replaceChildren();
    appendText(why, run.row.why);
    tiles.replaceChildren(...showTiles(run));
    health.replaceChildren(...showHealth(run.health));
    reading.textContent = run.more ? `reading metrics.jsonl, ${Math.round((100 * run.read[0]) / run.read[1])} %` : "";
    if (drawn !== run.steps.length * 1e6 + run.revision) board.draw();
    drawn = run.steps.length * 1e6 + run.revision;
    return run.more || listed.more;
  });
}

function showCompare(a, b) {
  setCrumbs(["Runs", "#/"], ["Two runs", null]);
  const runs = [new RunData(a), new RunData(b)], board = new Board(runs, null), names = el("ul", { class: "names" }), table = el("tbody", {});
  const section = el("section", { "aria-label": "Differences" }, el("h2", {}, "What differs in their recipes"), el("div", { class: "scroll" },
    el("table", { class: "differences" }, el("thead", {}, el("tr", {}, ["Key", "First", "Second"].map((text) => el("th", { scope: "col" }, text)))), table)));
  main.replaceChildren(el("div", { class: "title" }, el("h1", {}, "Two runs")), names, section, board.node);
  source.differences(a, b).then((found) => {
    table.replaceChildren(...found.differences.map(([key, values]) => el("tr", {}, foreign("th", { scope: "row" }, key), values.map((value) => foreign("td", {}, toText(value) || "null")))));
    if (!found.differences.length) section.replaceChildren(el("p", { class: "note" }, "Their recipes are the same."));
  }, () => {});
  let drawn = "";
  return repeat(async () => {
    for (const run of runs) await run.advance();
    const short = runs.map((run) => run.label.split("/").pop());
    if (short[0] !== short[1]) runs.forEach((run, index) => { run.label = short[index]; });
    names.replaceChildren(...runs.map((run, index) => el("li", {}, el("span", { class: "key c" + index, "aria-hidden": "true" }), foreign("a", { href: "#/run/" + run.id }, run.row.name), " ", stateChip(run.row), el("span", { class: "note" }, ` ${run.row.step} of ${run.row.steps ?? "?"} steps`))));
    const now = runs.map((run) => [run.steps.length, run.revision]).join();
    if (now !== drawn) board.draw();
    drawn = now;
    return runs.some((run) => run.more);
  });
}

function showSamples(id, step) {
  const order = el("select", { onchange: () => draw() }, Object.keys(ORDERS).map((name) => el("option", {}, name)));
  const split = el("select", { onchange: () => draw() }, ["all", "train", "test"].map((name) => el("option", {}, name)));
  const filter = el("input", { type: "search", placeholder: "text of prompt or completion", oninput: () => draw() });
  const jump = el("select", { onchange: () => { location.hash = `#/run/${id}/samples/${jump.value}`; } });
  const before = el("a", { class: "button", "aria-label": "earlier step" }, "\u2190"), after = el("a", { class: "button", "aria-label": "later step" }, "\u2192");
  const list = el("div", { class: "groups" }), count = el("p", { class: "note", role: "status" });
  const more = el("button", { type: "button", hidden: true, onclick: () => load() }, "More samples of this step");
  main.replaceChildren(el("div", { class: "title" }, el("h1", {}, `Samples of step ${step}`), el("div", { class: "controls" }, before, el("label", {}, "Step ", jump), after)),
    el("div", { class: "controls" }, el("label", {}, "Order ", order), el("label", {}, "Split ", split), el("label", {}, "Search ", filter)), count, list, more);
  let rows = [], cursor = 0, total = null;
  const draw = () => {
    const word = filter.value.toLowerCase();
    const kept = rows.filter((row) => (split.value === "all" || row.split === split.value) && (!word || [row.prompt, row.completion].some((text) => toText(text).toLowerCase().includes(word))));
    const groups = groupSamples(kept);
    if (order.value !== "as sampled") groups.sort(ORDERS[order.value]);
    list.replaceChildren(...groups.map(showGroup));
    count.textContent = `${kept.length} of ${total ?? rows.length} samples, ${groups.length} prompt${groups.length === 1 ? "" : "s"}`;
  };
  const load = async () => {
    const found = await source.samples(id, step, cursor);
    rows = rows.concat(found.samples);
    const known = new Set([...split.options].map((option) => option.value));
    for (const name of new Set(found.samples.map((row) => toText(row.split)))) if (!known.has(name)) split.append(el("option", { value: name }, escapeOdd(name)));
    cursor = found.next;
    more.hidden = cursor === null;
    draw();
  };
  let begun = false, shown = "";
  return repeat(async () => {
    const [listed, runs] = [await source.steps(id), begun ? null : await source.runs()];
    if (runs) setCrumbs(["Runs", held ? null : "#/"], [(runs.runs.find((row) => row.id === id) || { name: "run" }).name, "#/run/" + id], [`step ${step}`, null]);
    const at = listed.steps.indexOf(step);
    if (shown !== listed.steps.join()) {
      shown = listed.steps.join();
      total = at < 0 ? null : listed.rows[at];
      jump.replaceChildren(...listed.steps.map((number) => el("option", { selected: number === step }, String(number))));
      [[before, listed.steps[at - 1]], [after, listed.steps[at + 1]]].forEach(([link, to]) => (to === undefined ? link.removeAttribute("href") : link.setAttribute("href", `#/run/${id}/samples/${to}`)));
    }
    if (!begun && at >= 0) { begun = true; await load(); }
    if (!begun) count.textContent = listed.more ? `looking through samples.jsonl, ${Math.round((100 * listed.read[0]) / listed.read[1])} %` : "This step has no samples here.";
    return listed.more;
  });
}

function route() {
  leave();
  const [view, id, second, third] = decodeURIComponent(location.hash.slice(2)).split("/");
  window.scrollTo(0, 0);
  if (view === "run" && second === "samples") return showSamples(id, Number(third));
  if (view === "run") return showRun(id);
  if (view === "compare" && !held) return showCompare(id, second);
  return held ? showRun(held.run.run.id) : showList();
}

function openView() {
  window.opened = route(); // settles when the view has its first data
}

window.addEventListener("hashchange", () => { openView(); main.focus({ preventScroll: true }); });
openView();
