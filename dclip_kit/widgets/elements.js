// What every widget's page is made with; `read_page` puts it before each. Whatever a caption, a file
// or a person says becomes a text node or an attribute, and never HTML.

const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
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

// A slider over some values of a trait, which says its value in words.
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

// A JPEG that came as bytes, for an <img>.
function makeUrl(buffer, start = 0, size = buffer.byteLength) {
  const bytes = new Uint8Array(buffer.buffer ?? buffer, (buffer.byteOffset ?? 0) + start, size);
  return URL.createObjectURL(new Blob([bytes.slice()], { type: "image/jpeg" }));
}
