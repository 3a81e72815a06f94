// Opens views of the page in jsdom, acts on them, and prints as JSON what each shows: {view: {text, violations, ...}}.
// node look.cjs '{"url": LINK or file, "views": {name: {"hash": "#/...", "click": CSS, "axe": false for no check}}}'
const { JSDOM, CookieJar, VirtualConsole } = require("jsdom");
const axe = require("axe-core").source;
const { url, views } = JSON.parse(process.argv[2]);
const SETTINGS = { resultTypes: ["violations"], rules: { "color-contrast": { enabled: false } } }; // jsdom has no layout, by which contrast is found

async function main() {
  const errors = [], asked = [], cookieJar = new CookieJar();
  const console_ = new VirtualConsole();
  console_.on("jsdomError", (error) => errors.push(String(error)));
  console_.on("error", (...words) => errors.push(words.join(" ")));
  const settings = {
    runScripts: "dangerously", resources: "usable", pretendToBeVisual: true, cookieJar, virtualConsole: console_,
    beforeParse(window) {
      window.scrollTo = () => {};
      window.fetch = (path) => {
        const whole = new URL(path, window.location.href).href;
        asked.push(whole);
        return fetch(whole, { headers: { cookie: cookieJar.getCookieStringSync(whole) } });
      };
    },
  };
  const dom = url.startsWith("http") ? await JSDOM.fromURL(url, settings) : await JSDOM.fromFile(url, settings);
  const { window } = dom, { document } = window;
  while (!window.opened) await new Promise((done) => setTimeout(done, 10));
  window.eval(axe);
  const seen = {};
  for (const [name, { hash, click, axe: checked }] of Object.entries(views)) {
    if (hash !== undefined && window.location.hash !== hash) {
      window.location.hash = hash;
      await new Promise((done) => window.addEventListener("hashchange", done, { once: true }));
    }
    await window.opened;
    await new Promise((done) => setTimeout(done, 50));
    if (click) document.querySelector(click).click();
    const found = checked === false ? { violations: [] } : await window.axe.run(document, SETTINGS);
    seen[name] = {
      text: document.querySelector("header").textContent + document.getElementById("main").textContent, html: document.getElementById("main").innerHTML, title: document.title,
      violations: found.violations.map((v) => `${v.id}: ${v.nodes.map((n) => n.html).slice(0, 3).join(" ")}`),
      scripts: document.scripts.length, images: document.images.length, hacked: window.hacked ?? null,
      charts: [...document.querySelectorAll("figure:not([hidden])")].map((f) => f.querySelector("h3").textContent),
      curves: document.querySelectorAll(".line, .area").length,
    };
  }
  process.stdout.write(JSON.stringify({ seen, errors, asked }), () => process.exit(0)); // the page would go on asking
}
main().catch((error) => { console.error(error); process.exit(1); });
