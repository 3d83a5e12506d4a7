// Shows widgets on a page of their own: for each, a `model` whose other half is in `host.py`. Text
// becomes a text node, never HTML.

// What a widget's script expects of a model, over the page's socket.
class Model {
  #state = {};
  #changed = {};
  #listeners = new Map();
  #post;

  constructor(post) {
    this.#post = post;
  }

  get(name) {
    return this.#state[name];
  }

  set(name, value) {
    this.#changed[name] = value;
    this.#assign({ [name]: value });
  }

  save_changes() {
    if (Object.keys(this.#changed).length) this.#post("set", this.#changed);
    this.#changed = {};
  }

  send(content, callbacks, buffers = []) {
    this.#post("send", content, buffers);
  }

  on(event, listener) {
    this.#listeners.set(event, [...(this.#listeners.get(event) ?? []), listener]);
  }

  // A message of the widget: traits that have changed, some of them bytes, or one of its own.
  receive({ method, state = {}, buffer_paths = [], content }, buffers) {
    if (method === "custom") return this.#emit("msg:custom", content, buffers);
    if (method !== "update") return;
    buffer_paths.forEach(([name], i) => (state[name] = buffers[i]));
    this.#assign(state);
  }

  // All values first, so that a listener sees none that is out of date.
  #assign(state) {
    const changed = Object.keys(state).filter((name) => this.#state[name] !== state[name]);
    Object.assign(this.#state, state);
    for (const name of changed) this.#emit(`change:${name}`);
  }

  #emit(event, ...values) {
    for (const listener of this.#listeners.get(event) ?? []) listener(...values);
  }
}

// Messages: the header's length in 4 bytes, the header as JSON, and buffers.

function pack(header, buffers) {
  const parts = buffers.map((buffer) => new Uint8Array(buffer));
  const text = JSON.stringify({ ...header, sizes: parts.map((part) => part.length) });
  const head = new TextEncoder().encode(text);
  const length = new DataView(new ArrayBuffer(4));
  length.setUint32(0, head.length);
  return new Blob([length, head, ...parts]);
}

function unpack(frame) {
  const length = new DataView(frame).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(frame, 4, length)));
  let start = 4 + length;
  const buffers = header.sizes.map((size) => {
    start += size;
    return new DataView(frame, start - size, size);
  });
  return [header, buffers];
}

// The page

const socket = new WebSocket(`ws://${location.host}/socket`);
const tablist = document.querySelector("[role=tablist]");
const [progress, bar, words] = [".progress", "progress", ".progress span"].map((each) => document.querySelector(each));
const models = new Map(); // of tabs that were opened
let tabs = []; // their buttons

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function showState({ title, tabs: ready, message, share, failed }) {
  document.title = document.querySelector("h1").textContent = title;
  words.textContent = message;
  progress.classList.toggle("failed", failed);
  progress.hidden = !message;
  bar.hidden = failed;
  if (share === null) bar.removeAttribute("value");
  else bar.value = share;
  ready.slice(tabs.length).forEach(addTab);
  tablist.hidden = tabs.length < 2;
}

function addTab([title, lines, page]) {
  const number = tabs.length;
  const panel = make("section", { role: "tabpanel", id: `panel-${number}`, "aria-labelledby": `tab-${number}`, hidden: "" });
  const place = make("div", {}, make("p", { class: "empty" }, "Loading …"));
  panel.append(make("p", { class: "lines" }, lines.join(" ")), place);
  const settings = { type: "button", role: "tab", id: `tab-${number}`, "aria-controls": panel.id, tabindex: -1 };
  const tab = make("button", { ...settings, "aria-selected": "false" }, title);
  tab.addEventListener("click", () => select(number));
  tabs.push({ tab, panel, place, page });
  tablist.append(tab);
  document.querySelector("main").append(panel);
  if (number === 0) select(0);
}

function select(number) {
  tabs.forEach(({ tab, panel }, i) => {
    tab.setAttribute("aria-selected", i === number);
    tab.tabIndex = i === number ? 0 : -1;
    panel.hidden = i !== number;
  });
  if (models.has(number)) return;
  const post = (kind, content, buffers = []) => socket.send(pack({ tab: number, kind, content }, buffers));
  models.set(number, { model: new Model(post), shown: false });
  post("open");
}

async function receive(number, message, buffers) {
  const { place, page } = tabs[number];
  if (message.failed) {
    models.delete(number); // so that another click on the tab tries again
    place.replaceChildren(make("p", { class: "failed", role: "alert" }, message.failed));
    return;
  }
  const entry = models.get(number);
  entry.model.receive(message, buffers);
  if (entry.shown) return;
  entry.shown = true;
  const style = make("link", { rel: "stylesheet", href: `${page}.css` });
  const styled = new Promise((done) => style.addEventListener("load", done));
  document.head.append(style);
  const [script] = await Promise.all([import(`./${page}.js`), styled]);
  place.replaceChildren();
  script.default.render({ model: entry.model, el: place });
}

tablist.addEventListener("keydown", (event) => {
  const at = tabs.findIndex(({ tab }) => tab === document.activeElement);
  const last = tabs.length - 1;
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: last }[event.key];
  if (at < 0 || next === undefined) return;
  const number = (next + tabs.length) % tabs.length;
  select(number);
  tabs[number].tab.focus();
  event.preventDefault();
});

socket.binaryType = "arraybuffer";
socket.addEventListener("message", ({ data }) => {
  const [header, buffers] = unpack(data);
  if (header.page) showState(header.page);
  else receive(header.tab, header, buffers);
});
socket.addEventListener("close", ({ reason }) => {
  progress.hidden = false;
  bar.hidden = true;
  progress.classList.add("failed");
  words.textContent = reason || "The connection has ended. Reload this page; if that fails, start the app again.";
});
