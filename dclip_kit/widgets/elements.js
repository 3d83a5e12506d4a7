// Shared by all widgets' pages: `read_page` puts it before each script. Text from captions, files or
// users becomes a text node or an attribute, never HTML.

const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    // One by one: a page's policy may forbid them as an attribute.
    else if (name === "style") for (const each of Object.entries(value)) element.style.setProperty(...each);
    else if (value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function makeSvg(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// The outermost element of a widget. JupyterLab handles Enter and letters itself, unless an element is
// marked, and arrow keys of sliders and choices, unless their events are stopped.
function makeRoot(name, ...children) {
  const keep = (event) => event.ctrlKey || event.metaKey || event.altKey || event.stopPropagation();
  const marks = { class: `dclip-widget ${name}`, "data-lm-suppress-shortcuts": "true" };
  return make("div", { ...marks, onkeydown: keep }, ...children);
}

// Writes values to Python at once.
function set(model, values) {
  for (const [name, value] of Object.entries(values)) model.set(name, value);
  model.save_changes();
}

// Calls `follow` now, and whenever one of the traits changes.
function followTraits(model, names, follow) {
  follow();
  for (const name of names) model.on(`change:${name}`, follow);
}

// A slider over values of a trait, which shows its value in words.
function makeSlider(model, label, name, values, say) {
  const output = make("span", { class: "value" });
  const range = make("input", {
    type: "range",
    min: 0,
    max: values.length - 1,
    "aria-label": label,
    oninput: () => tell(values[range.value]),
    onchange: () => set(model, { [name]: values[range.value] }),
  });
  function tell(value) {
    output.textContent = say(value);
    range.setAttribute("aria-valuetext", output.textContent);
  }
  followTraits(model, [name], () => {
    range.value = values.indexOf(model.get(name));
    tell(model.get(name));
  });
  return make("label", {}, `${label} `, range, output);
}

// A URL of JPEG bytes, for an <img>.
function makeUrl(buffer, start = 0, size = buffer.byteLength) {
  const bytes = new Uint8Array(buffer.buffer ?? buffer, (buffer.byteOffset ?? 0) + start, size);
  return URL.createObjectURL(new Blob([bytes.slice()], { type: "image/jpeg" }));
}

// Lets a user choose a picture by a button in `place`, or drop one on `root`, and sends it to Python.
function takePictures(model, root, place, status, mostBytes) {
  const file = make("input", {
    type: "file",
    accept: "image/*",
    hidden: true,
    onchange: () => file.files[0] && send(file.files[0]),
  });
  const choose = { type: "button", class: "plain", title: "or drop one here" };
  place.append(make("button", { ...choose, onclick: () => file.click() }, "a picture of yours…"), file);
  async function send(picked) {
    if (picked.size > mostBytes) {
      status.textContent = `${picked.name} is larger than ${mostBytes >> 20} MB; take another.`;
    } else {
      const content = await picked.arrayBuffer();
      model.send({ kind: "picture", name: picked.name }, undefined, [content]);
    }
    file.value = "";
  }
  root.addEventListener("dragover", (event) => {
    event.preventDefault();
    root.classList.add("dropping");
  });
  root.addEventListener("dragleave", () => root.classList.remove("dropping"));
  root.addEventListener("drop", (event) => {
    event.preventDefault();
    root.classList.remove("dropping");
    if (event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
  });
}

// An input for a picture's number, with buttons for the previous and the next one.
function makeNumber(model, name, count, change) {
  const number = make("input", {
    type: "number",
    min: 0,
    max: count - 1,
    "aria-label": "picture",
    onchange: () => step(0),
    onkeydown: (event) => event.key === "Enter" && step(0),
  });
  function step(by) {
    const wanted = Math.round(Number(number.value)) + by;
    number.value = Math.min(Math.max(wanted || 0, 0), count - 1);
    change(Number(number.value));
  }
  followTraits(model, [name], () => (number.value = Math.max(model.get(name), 0)));
  const go = (label, by, text) => {
    const settings = { type: "button", class: "plain", "aria-label": label, onclick: () => step(by) };
    return make("button", settings, text);
  };
  const [back, on] = [go("previous picture", -1, "‹"), go("next picture", 1, "›")];
  return [make("label", {}, "picture ", number), back, on];
}
