// The page's half of RegionInspector.

// The title of each column of bars, and its greatest value.
const COLUMNS = {
  area: ["area", 1],
  confidence: ["confidence", 1],
  similarity: ["similarity", 1],
  weight: ["weight", 1],
  teacher: ["the paper's teacher pools", 1],
  "region teacher": ["the region teacher looks", 1],
};
const KINDS = { own: "its own", another: "another picture's", blank: "a blank one" };

function render({ model, el }) {
  const constants = model.get("_told");
  const group = `regions-${Math.random().toString(36).slice(2)}`;
  let url = "";

  // Controls

  const caption = make("select", {
    "aria-label": "caption",
    onchange: () => set(model, { caption: caption.selectedIndex }),
  });
  const kinds = Object.entries(KINDS).map(([kind, text]) => {
    const radio = make("input", {
      type: "radio",
      name: group,
      value: kind,
      disabled: kind === "another" && constants.pictures === 1,
      onchange: () => set(model, { regions: kind }),
    });
    followTraits(model, ["regions"], () => (radio.checked = model.get("regions") === kind));
    return make("label", {}, radio, ` ${text}`);
  });
  const powers = Array.from({ length: 13 }, (_, i) => i / 4);
  const sliders = ["area", "confidence", "similarity"].map((factor) =>
    makeSlider(model, factor, factor, powers, (power) => `power ${power}`),
  );

  // What is seen

  const image = make("img", { alt: "the picture that the regions are of" });
  const boxes = makeSvg("svg", { class: "boxes", "aria-hidden": "true" });
  const words = make("p", { class: "words", role: "list", "aria-label": "words of the caption" });
  const table = make("table", {});
  const status = make("p", { role: "status", "aria-live": "polite" });
  const root = makeRoot(
    "dclip-inspector",
    make(
      "div",
      { class: "row" },
      ...makeNumber(model, "picture", constants.pictures, (picture) => set(model, { picture, caption: 0 })),
      caption,
    ),
    make("div", { class: "row", role: "radiogroup", "aria-label": "regions" }, "regions: ", ...kinds),
    make("div", { class: "row", role: "group", "aria-label": "powers" }, "weight: ", ...sliders),
    make(
      "div",
      { class: "both" },
      make("div", { class: "frame" }, image, boxes),
      make("div", { class: "said" }, words, table, status),
    ),
  );

  function show() {
    const seen = model.get("seen");
    caption.replaceChildren(...seen.captions.map((text) => make("option", {}, text)));
    caption.selectedIndex = model.get("caption");
    words.replaceChildren(...seen.tokens.map((token, i) => makeWord(token, i)));
    boxes.setAttribute("viewBox", `0 0 ${seen.size[0]} ${seen.size[1]}`);
    boxes.replaceChildren(...seen.boxes.flatMap(makeBox));
    const titles = Object.values(COLUMNS).map(([title]) => make("th", { scope: "col" }, title));
    table.replaceChildren(
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "region"), ...titles)),
      make("tbody", {}, ...seen.labels.map(makeRow)),
    );
    status.textContent = model.get("message");
    light(null);
  }

  function makeWord(token, index) {
    const word = make("span", { role: "listitem", tabindex: 0, class: "word" }, token);
    listen(word, () => lightFrom("token", index));
    return word;
  }

  function makeBox(box, index) {
    const seen = model.get("seen");
    const [left, top, right, bottom] = box;
    const rect = makeSvg("rect", {
      x: left,
      y: top,
      width: right - left,
      height: bottom - top,
      stroke: seen.colors[index],
      "stroke-opacity": 0.35 + 0.65 * seen.columns.weight[index],
    });
    const title = makeSvg("title", {});
    title.textContent = `${index + 1} ${seen.labels[index]}`;
    rect.append(title);
    const size = Math.max(...seen.size) / 18;
    const tag = makeSvg("text", { x: left + size / 4, y: top + size, fill: seen.colors[index], "font-size": size });
    tag.textContent = index + 1;
    listen(rect, () => lightFrom("region", index));
    return [rect, tag];
  }

  function makeRow(label, index) {
    const seen = model.get("seen");
    const cells = Object.entries(COLUMNS).map(([name, [, most]]) => {
      const value = seen.columns[name][index];
      const bar = make("span", { class: "bar", style: { width: `${100 * (value / most)}%` } });
      return make("td", { class: name === "weight" ? "weight" : "" }, bar, make("span", {}, value.toFixed(2)));
    });
    const row = make(
      "tr",
      { tabindex: 0 },
      make("th", { scope: "row", style: { "--color": seen.colors[index] } }, `${index + 1} ${label}`),
      ...cells,
    );
    listen(row, () => lightFrom("region", index));
    return row;
  }

  function listen(element, on) {
    for (const event of ["mouseenter", "focus"]) element.addEventListener(event, on);
    for (const event of ["mouseleave", "blur"]) element.addEventListener(event, () => light(null));
  }

  // Highlights the regions that a word attends to, or the words that a region attends to.
  function lightFrom(kind, index) {
    const seen = model.get("seen");
    const looks = kind === "token" ? seen.token_to_region[index] : seen.region_to_token[index];
    light(kind, index, looks);
  }

  function light(kind, index, looks = []) {
    const most = Math.max(...looks, 1e-9);
    const share = (i) => (i < looks.length ? looks[i] / most : 0);
    const [lit, from] = [kind === "region" ? "token" : "region", kind];
    const places = { token: [...words.children], region: [...boxes.querySelectorAll("rect")] };
    const rows = [...table.querySelectorAll("tbody tr")];
    for (const each of [...places.token, ...places.region, ...rows]) {
      each.classList.remove("from");
      each.style.removeProperty("--lit");
      each.removeAttribute("data-looks");
    }
    if (!kind) return;
    places[from][index].classList.add("from");
    if (from === "region") rows[index].classList.add("from");
    places[lit].forEach((each, i) => {
      each.style.setProperty("--lit", share(i).toFixed(3));
      each.setAttribute("data-looks", looks[i].toFixed(2));
      if (lit === "region") rows[i].style.setProperty("--lit", share(i).toFixed(3));
    });
  }

  followTraits(model, ["_shown"], () => {
    URL.revokeObjectURL(url);
    image.src = url = makeUrl(model.get("_shown"));
  });
  el.append(root);
  followTraits(model, ["seen"], show);
  model.on("change:message", () => (status.textContent = model.get("message")));
  return () => URL.revokeObjectURL(url);
}

export default { render };
