"use strict";
// The samples of a step: groups of one prompt, and a completion token by token.

const MEASURES = {
  difference: { label: "difference of log-probs", note: "trainer minus sampler, nats", of: (t, i) => minus(t.logprobs[i], t.rollout_logprobs[i]), most: 0.5, signed: true },
  logprobs: { label: "trainer's log-prob", note: "nats", of: (t, i) => t.logprobs[i], most: -5 },
  rollout_logprobs: { label: "sampler's log-prob", note: "nats", of: (t, i) => t.rollout_logprobs[i], most: -5 },
  entropies: { label: "entropy", note: "nats", of: (t, i) => t.entropies[i], most: 2.5 },
};
const LEVELS = 5;
const LONG = 900; // characters of a text that is folded

function minus(a, b) {
  return isNumber(a) && isNumber(b) ? a - b : null;
}

function listOf(value) {
  return Array.isArray(value) ? value : [];
}

function groupSamples(rows) {
  const groups = new Map();
  for (const row of rows) {
    const key = JSON.stringify([row.split, Array.isArray(row.key) ? row.key.slice(0, 2) : row.prompt]);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(row);
  }
  return [...groups.values()];
}

function meanReward(rows) {
  const numbers = rows.map((row) => row.reward).filter(isNumber);
  return numbers.length ? numbers.reduce((a, b) => a + b, 0) / numbers.length : null;
}

const ORDERS = {
  "as sampled": () => 0,
  "lowest reward first": (a, b) => (meanReward(a) ?? Infinity) - (meanReward(b) ?? Infinity),
  "highest reward first": (a, b) => (meanReward(b) ?? -Infinity) - (meanReward(a) ?? -Infinity),
};

// A text that a model or a file wrote; long ones are folded in their middle.
function showForeign(value, className) {
  const text = toText(value);
  const node = el("div", { class: "foreign " + className, dir: "auto" });
  if (text.length <= LONG * 1.3) return appendText(node, text);
  const rest = el("span", { hidden: true });
  const button = el("button", { type: "button", class: "more", "aria-expanded": "false", onclick: () => {
    if (rest.hidden && !rest.firstChild) appendText(rest, text.slice(LONG * 0.4, text.length - LONG * 0.6));
    rest.hidden = !rest.hidden;
    button.setAttribute("aria-expanded", String(!rest.hidden));
    button.textContent = rest.hidden ? `${(text.length - LONG).toLocaleString("en")} more characters` : "fold";
  } }, `${(text.length - LONG).toLocaleString("en")} more characters`);
  appendText(node, text.slice(0, LONG * 0.4));
  node.append(rest, button);
  return appendText(node, text.slice(text.length - LONG * 0.6));
}

function level(measure, value) {
  if (!isNumber(value)) return "t-none";
  const size = Math.min(LEVELS, Math.round((Math.abs(value) / Math.abs(measure.most)) * LEVELS));
  return size === 0 ? "t-0" : `t-${measure.signed && value < 0 ? "low" : "high"}${size}`;
}

function showTokens(tokens) {
  const texts = listOf(tokens.text), t = {};
  for (const name of ["ids", "logprobs", "rollout_logprobs", "entropies"]) t[name] = listOf(tokens[name]);
  const details = el("dl", { class: "facts token-facts", "aria-live": "polite" });
  const spans = texts.map((text, index) => foreign("span", { "data-index": index }, text));
  const strip = el("div", { class: "foreign tokens", dir: "auto", tabindex: 0, role: "group", "aria-label": "Tokens; arrow keys go from one to the next" }, spans);
  let chosen = -1;
  const choose = (index) => {
    if (index < 0 || index >= texts.length) return;
    if (spans[chosen]) spans[chosen].classList.remove("chosen");
    chosen = index;
    spans[chosen].classList.add("chosen");
    const facts = [["token", JSON.stringify(toText(texts[index]))], ["id", t.ids[index]], ["position", index]];
    for (const measure of Object.values(MEASURES)) facts.push([measure.label, formatNumber(measure.of(t, index))]);
    details.replaceChildren(...facts.map(([label, value]) => el("div", {}, el("dt", {}, label), foreign("dd", {}, value))));
  };
  const legend = el("p", { class: "note scale" });
  const paint = (name) => {
    const measure = MEASURES[name];
    spans.forEach((span, index) => {
      span.className = level(measure, measure.of(t, index)) + (index === chosen ? " chosen" : "");
    });
    const swatches = measure.signed ? ["low5", "low3", "low1", "0", "high1", "high3", "high5"] : ["0", "high1", "high2", "high3", "high4", "high5"];
    legend.replaceChildren(measure.signed ? `\u2264 \u2212${measure.most} ` : "0 ", ...swatches.map((s) => el("span", { class: "swatch t-" + s, "aria-hidden": "true" })),
      ` ${measure.signed ? "\u2265 +" : measure.most < 0 ? "\u2264 " : "\u2265 "}${String(measure.most).replace("-", "\u2212")}  ${measure.note}`);
  };
  strip.addEventListener("pointerover", (event) => {
    const span = event.target.closest("[data-index]");
    if (span) choose(Number(span.getAttribute("data-index")));
  });
  strip.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, Home: 0, End: texts.length - 1 };
    if (event.key in moves) { choose(Math.max(0, moves[event.key])); event.preventDefault(); }
  });
  const select = el("select", { onchange: () => paint(select.value) }, Object.entries(MEASURES).map(([name, m]) => el("option", { value: name }, m.label)));
  paint("difference");
  choose(0);
  return el("div", { class: "token-view" }, el("div", { class: "controls" }, el("label", {}, "Colour ", select), legend), strip, details);
}

function chip(label, value, className) {
  return el("span", { class: "chip " + (className || "") }, foreign("span", {}, label), foreign("b", {}, value));
}

// The text of a sample; of an episode what the policy wrote and what its environment answered, one after the other.
function showCompletion(row) {
  const turns = listOf(row.turns).filter((turn) => turn && typeof turn === "object");
  if (!turns.length) return showForeign(row.completion, "completion");
  return el("ol", { class: "turns" }, turns.map((turn) => el("li", {},
    el("span", { class: "note" }, turn.by === "policy" ? "policy" : "environment"),
    showForeign(turn.text, turn.by === "policy" ? "completion" : "completion observation"))));
}

function showSample(row) {
  if (typeof row.damaged === "string") return el("li", { class: "sample" }, el("p", { class: "note" }, "A line that could not be read:"), showForeign(row.damaged, "completion"));
  const parts = row.rewards && typeof row.rewards === "object" ? Object.entries(row.rewards) : [];
  const signed = isNumber(row.advantage) ? (row.advantage > 0 ? "+" : row.advantage < 0 ? "\u2212" : "") + formatNumber(Math.abs(row.advantage)) : null;
  const head = el("div", { class: "chips" },
    chip("reward", isNumber(row.reward) ? formatNumber(row.reward) : "failed", isNumber(row.reward) ? "strong" : "bad"),
    signed === null ? null : chip("advantage", signed, row.advantage > 0 ? "good" : row.advantage < 0 ? "bad" : ""),
    parts.length > 1 ? parts.map(([name, value]) => chip(name, isNumber(value) ? formatNumber(value) : toText(value) || "\u2013")) : null,
    row.stop ? chip("stop", row.stop) : null,
    row.version !== undefined ? chip("weights", row.version) : null);
  const body = showCompletion(row);
  const item = el("li", { class: "sample" }, head, body);
  if (row.tokens && typeof row.tokens === "object") {
    let view = null;
    const button = el("button", { type: "button", "aria-expanded": "false", onclick: () => {
      if (!view) body.after((view = showTokens(row.tokens)));
      const open = button.getAttribute("aria-expanded") !== "true";
      button.setAttribute("aria-expanded", String(open));
      view.hidden = !open;
      body.hidden = open;
    } }, "Token by token");
    head.append(button);
  }
  if (row.extra && typeof row.extra === "object" && Object.keys(row.extra).length) {
    item.append(el("details", {}, el("summary", {}, "More of this sample"), showForeign(JSON.stringify(row.extra, null, 2), "extra")));
  }
  return item;
}

function showGroup(rows) {
  const first = rows[0];
  const mean = meanReward(rows);
  return el("article", { class: "group" },
    el("header", {}, el("h2", {}, first.split === "train" ? "Prompt" : "Held-out prompt"),
      el("span", { class: "note" }, `${rows.length} completion${rows.length > 1 ? "s" : ""}, mean reward ${formatNumber(mean)}`)),
    first.damaged ? null : showForeign(first.prompt, "prompt"),
    first.answer === undefined || first.answer === null ? null : el("p", { class: "answer" }, el("span", { class: "note" }, "answer "), foreign("b", {}, first.answer)),
    el("ol", { class: "samples" }, rows.map(showSample)));
}
