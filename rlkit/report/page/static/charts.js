"use strict";
// Charts in SVG. A chart shows the series of one or two runs; all charts of a page point at the same step.

const PHASES = ["sync", "rollout", "resume", "read", "observe", "update", "evaluation", "checkpoint"]; // one colour a phase, for ever
const HEIGHT = 190;
const PAD = { left: 46, right: 10, top: 8, bottom: 22 };

function one(label, name, more) {
  return { label, name, ...more };
}

function named(run, pattern) {
  return [...run.columns.keys()].filter((name) => pattern.test(name)).map((name) => one(escapeOdd(pattern.exec(name)[1]), name));
}

const TRAIN_ACCURACY = ["accuracy", "rewards/accuracy/mean", "rewards/accuracies"];

// Each panel: title, note, and the series that a run has for it.
const GROUPS = [
  ["Learning", [
    { title: "Reward", note: "mean of the step, \u00b1 spread within groups", series: () => [one("reward", "reward", { spread: "reward_std" })] },
    { title: "Reward components", note: "mean score", series: (run) => named(run, /^rewards\/(.+)\/mean$/) },
    { title: "Accuracy", note: "held-out with its 95 % interval", unit: [0, 1], series: (run) => [
      one("train", TRAIN_ACCURACY.find((name) => run.columns.has(name))),
      one("held-out", "eval/accuracy", { low: "eval/accuracy_low", high: "eval/accuracy_high", points: true }),
      ...named(run, /^eval\/([^/]+)\/accuracy$/).map((s) => ({ ...s, low: s.name + "_low", high: s.name + "_high", points: true })),
    ] },
    { title: "pass@k and maj@k", note: "held-out", unit: [0, 1], series: (run) => named(run, /^eval\/((?:[^/]+\/)?(?:pass|maj)@\d+)$/) },
    { title: "Loss", note: "train and held-out", when: (run) => !run.columns.has("reward"),
      series: () => [one("train", "loss"), one("held-out", "eval/loss", { points: true })] },
    { title: "Implicit rewards", note: "of better and worse completions", series: () => [
      one("chosen", "rewards/chosen"), one("rejected", "rewards/rejected"), one("margin", "rewards/margins")] },
  ]],
  ["Policy", [
    { title: "KL to the start", note: "nats a token", series: () => [one("kl", "kl")] },
    { title: "Entropy", note: "nats a token", zero: true, series: () => [one("entropy", "entropy")] },
    { title: "Gradient norm", note: "before clipping", zero: true, series: () => [one("policy", "grad_norm"), one("critic", "critic/grad_norm")] },
    { title: "Clipped tokens", note: "share of tokens", zero: true, series: () => [
      one("at the lower bound", "clip_ratio/low_mean"), one("at the upper bound", "clip_ratio/high_mean")] },
    { title: "Sampler against trainer", note: "mean log-prob difference, nats", zero: true,
      series: () => [one("difference", "sampling/sampling_logp_difference/mean")] },
  ]],
  ["Completions", [
    { title: "Groups with a signal", note: "share with unequal rewards", unit: [0, 1],
      series: () => [one("with a signal", "frac_reward_zero_std", { map: (value) => 1 - value })] },
    { title: "Completion length", note: "tokens, shortest to longest", zero: true,
      series: () => [one("mean", "completions/mean_length", { low: "completions/min_length", high: "completions/max_length" })] },
    { title: "Cut completions", note: "share at the limit of tokens", zero: true, series: () => [
      one("train", "completions/clipped_ratio"), one("held-out", "eval/completions/clipped_ratio", { points: true })] },
  ]],
  ["Machine", [
    { title: "Time by phase", note: "seconds a step", stack: true, zero: true,
      series: (run) => PHASES.map((phase, index) => one(phase, "time/" + phase, { color: "phase" + index })).filter((s) => run.columns.has(s.name)) },
    { title: "Memory by phase", note: "largest, GiB; dashed: predicted", zero: true, series: (run) => [
      ...named(run, /^memory\/(.+)_peak_gib$/).map((s, i) => ({ ...s, color: "c" + i })),
      ...named(run, /^memory\/(.+)_predicted_gib$/).map((s) => ({ ...s, label: s.label + " predicted", dashed: true, color: null, pair: s.label })),
      one("process", "memory/process_gib")] },
    { title: "Throughput", note: "completion tokens a second", zero: true, series: () => [one("tokens/s", "throughput/tokens_per_second")] },
  ]],
];

function smoothValues(values, span) {
  if (!span) return values;
  const keep = 1 - 2 / (span + 1);
  let mean = null;
  return values.map((value) => (isNumber(value) ? (mean = mean === null ? value : keep * mean + (1 - keep) * value) : value));
}

function niceTicks(low, high, count) {
  const raw = (high - low) / count || 1;
  const base = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * base).find((size) => size >= raw * 0.999);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) ticks.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
  return ticks;
}

// What a panel shows of some runs: [{label, className, steps, values, low, high}]; of several runs the colour is the run's.
function collectSeries(panel, runs) {
  const found = [];
  runs.forEach((run, index) => {
    if (panel.when && !panel.when(run)) return;
    let wanted = panel.series(run).filter((s) => s.name && run.columns.has(s.name));
    if (panel.stack && runs.length > 1) wanted = [one("step", "time/step")].filter((s) => run.columns.has(s.name));
    wanted.forEach((s, order) => {
      const raw = run.columns.get(s.name);
      const values = s.map ? raw.map((value) => (isNumber(value) ? s.map(value) : value)) : raw;
      if (!values.some(isNumber)) return;
      const spread = runs.length === 1 && s.spread && run.columns.get(s.spread);
      const around = (sign) => spread && values.map((value, row) => (isNumber(value) && isNumber(spread[row]) ? value + sign * spread[row] : null));
      const pair = s.pair ? wanted.findIndex((other) => other.label === s.pair) : -1;
      const color = runs.length > 1 ? "c" + index : s.color || "c" + ((pair >= 0 ? pair : order) % 8);
      found.push({
        label: runs.length > 1 ? (wanted.length > 1 ? `${run.label} ${s.label}` : run.label) : s.label,
        color, steps: run.steps, values, points: s.points,
        dash: s.dashed ? "dashed" : runs.length > 1 && order ? "dash" + (order % 3) : "",
        low: (s.low && run.columns.get(s.low)) || around(-1), high: (s.high && run.columns.get(s.high)) || around(1),
      });
    });
  });
  return found;
}

class Chart {
  constructor(panel, page) {
    this.panel = panel;
    this.page = page; // { smooth, point(step), choose(step) }
    this.legend = el("ul", { class: "legend" });
    this.plot = el("div", { class: "plot" });
    this.figure = el("figure", { class: "chart" },
      el("figcaption", {}, foreign("h3", {}, panel.title), el("span", { class: "note" }, panel.note || "")), this.plot, this.legend);
  }

  draw(runs) {
    this.series = collectSeries(this.panel, runs);
    this.stack = this.panel.stack && runs.length === 1;
    this.figure.hidden = this.series.length === 0;
    if (this.figure.hidden) return false;
    this.width = Math.max(260, this.plot.clientWidth || 420);
    this.measure();
    const marks = [this.axes(), ...(this.stack ? this.areas() : this.series.flatMap((s) => this.lines(s)))];
    this.cursor = el("svg:line", { class: "cursor", y1: PAD.top, y2: HEIGHT - PAD.bottom, visibility: "hidden" });
    const picture = el("svg:svg", {
      viewBox: `0 0 ${this.width} ${HEIGHT}`, width: this.width, height: HEIGHT, role: "slider", tabindex: 0,
      "aria-label": `${escapeOdd(this.panel.title)}: step`, "aria-valuemin": this.x[0], "aria-valuemax": this.x[1], "aria-valuenow": this.x[1],
      "aria-valuetext": this.tell(null),
      onpointermove: (event) => this.page.point(this.stepAt(event)), onpointerleave: () => this.page.point(null),
      onclick: (event) => this.page.choose(this.stepAt(event)), onkeydown: (event) => this.key(event), onblur: () => this.page.point(null),
    }, ...marks, this.cursor);
    const had = this.plot.contains(document.activeElement);
    this.plot.replaceChildren(picture);
    if (had) picture.focus({ preventScroll: true });
    this.picture = picture;
    this.entries = this.series.map((s) => {
      const value = el("b", {});
      this.legend.append(value);
      return { s, value };
    });
    const shares = this.stack ? this.shares() : null;
    this.legend.replaceChildren(...this.entries.map(({ s, value }, i) => el("li", {},
      el("span", { class: `key ${s.color} ${s.dash}`, "aria-hidden": "true" }), s.label + " ", value, shares ? el("span", { class: "note" }, ` ${shares[i]}`) : null)));
    this.show(this.page.step);
    return true;
  }

  shares() {
    const sums = this.series.map((s) => s.values.filter(isNumber).reduce((a, b) => a + b, 0));
    const all = sums.reduce((a, b) => a + b, 0) || 1;
    return sums.map((sum) => Math.round((100 * sum) / all) + " %");
  }

  measure() {
    const steps = this.series.flatMap((s) => [s.steps[0], s.steps[s.steps.length - 1]]);
    this.x = [Math.min(...steps), Math.max(...steps)];
    let low = Infinity, high = -Infinity;
    const widen = (value) => { if (isNumber(value)) { low = Math.min(low, value); high = Math.max(high, value); } };
    if (this.stack) {
      this.series[0].steps.forEach((_, row) => widen(this.series.reduce((sum, s) => sum + (s.values[row] || 0), 0)));
    } else {
      for (const s of this.series) for (const values of [s.values, s.low, s.high]) if (values) values.forEach(widen);
    }
    if (this.panel.unit) [low, high] = [Math.min(low, this.panel.unit[0]), Math.max(high, this.panel.unit[1])];
    if (this.panel.zero) low = Math.min(low, 0);
    if (low === high) [low, high] = [low - Math.abs(low || 1) * 0.1, high + Math.abs(high || 1) * 0.1];
    const ticks = niceTicks(low, high, 4), step = ticks.length > 1 ? ticks[1] - ticks[0] : high - low;
    this.y = [low, Math.max(high, Math.ceil(high / step - 0.05) * step)]; // a line never runs along the upper edge
  }

  toX(step) {
    const span = this.x[1] - this.x[0];
    return PAD.left + (span ? (step - this.x[0]) / span : 0.5) * (this.width - PAD.left - PAD.right);
  }

  toY(value) {
    return HEIGHT - PAD.bottom - ((value - this.y[0]) / (this.y[1] - this.y[0])) * (HEIGHT - PAD.top - PAD.bottom);
  }

  axes() {
    const group = el("svg:g", { class: "axes", "aria-hidden": "true" });
    for (const tick of niceTicks(this.y[0], this.y[1], 4)) {
      const y = this.toY(tick);
      group.append(el("svg:line", { x1: PAD.left, x2: this.width - PAD.right, y1: y, y2: y }));
      group.append(el("svg:text", { x: PAD.left - 6, y: y + 4, "text-anchor": "end" }, formatTick(tick)));
    }
    for (const tick of niceTicks(this.x[0], this.x[1], this.width > 360 ? 6 : 4).filter(Number.isInteger)) {
      group.append(el("svg:text", { x: this.toX(tick), y: HEIGHT - 6, "text-anchor": "middle" }, formatTick(tick)));
    }
    return group;
  }

  // Rows merged so that no two share a pixel: the mean of each.
  thin(steps, values) {
    const points = [];
    const per = Math.max(1, steps.length / (this.width - PAD.left - PAD.right));
    for (let begin = 0; begin < steps.length; begin += per) {
      const from = Math.floor(begin), to = Math.max(from + 1, Math.floor(begin + per));
      const part = values.slice(from, to).filter(isNumber);
      if (part.length) points.push([this.toX(steps[from]), this.toY(part.reduce((a, b) => a + b, 0) / part.length)]);
    }
    return points;
  }

  lines(s) {
    const path = (values) => this.thin(s.steps, values).map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
    const marks = [];
    if (s.low && s.high && !(this.page.smooth && !s.points)) {
      const up = this.thin(s.steps, s.high), down = this.thin(s.steps, s.low).reverse();
      const shape = [...up, ...down].map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
      marks.push(el("svg:polygon", { class: "band " + s.color, points: shape }));
    }
    const smooth = s.points ? 0 : this.page.smooth;
    if (smooth) marks.push(el("svg:path", { class: `line faint ${s.color}`, d: path(s.values) }));
    marks.push(el("svg:path", { class: `line ${s.color} ${s.dash}`, d: path(smoothValues(s.values, smooth)) }));
    const count = s.values.filter(isNumber).length;
    if (count === 1 || (s.points && count <= 60)) {
      for (const [x, y] of this.thin(s.steps, s.values)) marks.push(el("svg:circle", { class: "dot " + s.color, cx: x, cy: y, r: 2.8 }));
    }
    return marks;
  }

  areas() {
    const steps = this.series[0].steps;
    const base = steps.map(() => 0);
    return this.series.map((s) => {
      const low = base.slice();
      steps.forEach((_, row) => { base[row] += s.values[row] || 0; });
      const up = this.stairs(this.thin(steps, base)), down = this.stairs(this.thin(steps, low)).reverse();
      return el("svg:polygon", { class: "area " + s.color, points: [...up, ...down].map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ") });
    });
  }

  // A column for each point: what one step took must not lean over its neighbours.
  stairs(points) {
    return points.flatMap(([x, y], i) => {
      const left = i ? (x + points[i - 1][0]) / 2 : x, right = i + 1 < points.length ? (x + points[i + 1][0]) / 2 : x;
      return [[left, y], [right, y]];
    });
  }

  stepAt(event) {
    const box = this.picture.getBoundingClientRect();
    const share = ((event.clientX - box.left) * (this.width / (box.width || this.width)) - PAD.left) / (this.width - PAD.left - PAD.right);
    return Math.round(this.x[0] + Math.min(1, Math.max(0, share)) * (this.x[1] - this.x[0]));
  }

  key(event) {
    const now = this.page.step === null ? this.x[1] : this.page.step;
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10, Home: -1e12, End: 1e12 };
    if (event.key in moves) this.page.point(Math.min(this.x[1], Math.max(this.x[0], now + moves[event.key])));
    else if (event.key === "Enter") this.page.choose(now);
    else if (event.key === "Escape") this.page.point(null);
    else return;
    event.preventDefault();
  }

  valueAt(s, step) {
    for (let row = s.steps.length - 1; row >= 0; row--) if (isNumber(s.values[row]) && (step === null || s.steps[row] <= step)) return row;
    return -1;
  }

  tell(step) {
    const parts = this.series.map((s) => {
      const row = this.valueAt(s, step);
      return row < 0 ? "" : `${s.label} ${formatNumber(s.values[row])}`;
    });
    return `${step === null ? "last" : "step " + step}: ${parts.filter(Boolean).join(", ")}`;
  }

  // The values at a step in the legend, the last ones without a step.
  show(step) {
    if (!this.picture || this.figure.hidden) return;
    const inside = step !== null && step >= this.x[0] && step <= this.x[1];
    this.cursor.setAttribute("visibility", inside ? "visible" : "hidden");
    if (inside) for (const name of ["x1", "x2"]) this.cursor.setAttribute(name, this.toX(step));
    this.picture.setAttribute("aria-valuenow", inside ? step : this.x[1]);
    this.picture.setAttribute("aria-valuetext", this.tell(inside ? step : null));
    for (const { s, value } of this.entries) {
      const row = this.valueAt(s, inside ? step : null);
      const around = row >= 0 && s.points && s.low && isNumber(s.low[row]) ? ` [${formatNumber(s.low[row])}, ${formatNumber(s.high[row])}]` : "";
      value.textContent = row < 0 ? "\u2013" : formatNumber(s.values[row]) + around;
    }
  }
}

function formatTick(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return value / 1e6 + "M";
  if (size >= 1e4) return value / 1e3 + "k";
  if (size !== 0 && size < 0.001) return value.toExponential(0);
  return String(Number(value.toPrecision(4)));
}
