"use strict";
// Elements and text. Whatever a model or a file wrote goes through appendText or escapeOdd, and becomes text nodes alone.

// Controls (but tab and line end), format characters (bidi marks, zero width), surrogates, unassigned, line separators, blank letters.
const ODD = /[^\P{C}\t\n]|[\p{Zl}\p{Zp}\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0]/gu;

function nameOdd(char) {
  const code = char.codePointAt(0);
  if (code <= 0xff) return "\\x" + code.toString(16).padStart(2, "0");
  return code <= 0xffff ? "\\u" + code.toString(16).padStart(4, "0") : "\\U" + code.toString(16).padStart(8, "0");
}

function toText(value) {
  if (typeof value === "string") return value;
  return value === undefined || value === null ? "" : JSON.stringify(value);
}

function escapeOdd(value) {
  return toText(value).replace(ODD, nameOdd);
}

function appendText(node, value) {
  const text = toText(value);
  let end = 0;
  for (const found of text.matchAll(ODD)) {
    node.append(text.slice(end, found.index), el("span", { class: "odd", title: "a character that would not be seen" }, nameOdd(found[0])));
    end = found.index + found[0].length;
  }
  node.append(text.slice(end));
  return node;
}

// el("a", { class: "x", href: "#/", onclick: f }, child, ...): children that are strings become text.
function el(tag, attributes, ...children) {
  const node = tag.startsWith("svg:") ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function foreign(tag, attributes, value) {
  return appendText(el(tag, attributes), value);
}

function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

function formatNumber(value) {
  if (!isNumber(value)) return "\u2013";
  const size = Math.abs(value);
  if (size >= 1e6) return value.toExponential(2);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size !== 0 && size < 0.001) return value.toExponential(1);
  return Number.isInteger(value) ? String(value) : value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 3);
}

function formatDuration(seconds) {
  if (!isNumber(seconds)) return "\u2013";
  if (seconds < 60) return seconds.toFixed(seconds < 10 ? 1 : 0) + " s";
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? minutes + " min" : Math.floor(minutes / 60) + " h " + (minutes % 60) + " min";
}

function formatAge(unix) {
  if (!isNumber(unix) || unix <= 0) return "\u2013";
  const seconds = Math.max(0, Date.now() / 1000 - unix);
  return seconds < 86400 ? (seconds < 60 ? Math.floor(seconds) + " s" : formatDuration(seconds)) + " ago" : new Date(unix * 1000).toISOString().slice(0, 16).replace("T", " ");
}

function median(values) {
  const sorted = values.filter(isNumber).sort((a, b) => a - b);
  return sorted.length ? sorted[Math.floor(sorted.length / 2)] : null;
}
