// The page's half of QueryGallery.

function render({ model, el }) {
  const constants = model.get("_told"); // names, shares, groups, available features
  let urls = new Map(); // of the current thumbnails, by picture

  // Controls

  const query = make("input", {
    type: "search",
    "aria-label": "words to search for",
    placeholder: "type, then press Enter",
    list: `${constants.id}-examples`,
    onkeydown: (event) => {
      if (event.key === "Enter") ask();
      if (event.key === "Escape") query.value = model.get("query");
    },
  });
  const ask = () => set(model, { query: query.value, picture: -1 });
  const own = make("span");
  const examples = make("datalist", { id: `${constants.id}-examples` });
  examples.append(...constants.examples.map((text) => make("option", { value: text })));
  function checkbox(label, name) {
    const box = make("input", { type: "checkbox", onchange: () => set(model, { [name]: box.checked }) });
    followTraits(model, [name], () => (box.checked = model.get(name)));
    return make("label", {}, box, ` ${label}`);
  }

  function choice(label, name, groups) {
    const select = make("select", {
      "aria-label": label,
      onchange: () => set(model, { [name]: select.value }),
    });
    for (const [title, options] of groups) {
      const place = title ? select.appendChild(make("optgroup", { label: title })) : select;
      place.append(...options.map(([value, text]) => make("option", { value }, text)));
    }
    followTraits(model, [name], () => (select.value = model.get(name)));
    return select;
  }

  function step(by) {
    const count = model.get("matching");
    const at = model.get("position");
    if (count) set(model, { position: at < 0 ? 0 : (at + by + count) % count });
  }

  const place = make("span", { class: "place" });
  const walk = make("div", { class: "row walk", role: "group", "aria-label": "captions whose picture is known" });
  if (constants.outcomes.length) {
    walk.append(
      "captions ",
      choice("what fine-tuning did to them", "outcome", [["", constants.outcomes]]),
      " of ",
      choice("kind of caption", "group", constants.groups),
      " ",
      make("button", { type: "button", class: "plain", "aria-label": "previous caption", onclick: () => step(-1) }, "‹"),
      place,
      make("button", { type: "button", class: "plain", "aria-label": "next caption", onclick: () => step(1) }, "›"),
    );
  }
  const settings = make("div", { class: "row" });
  const numbers = Array.from({ length: constants.most }, (_, i) => i + 1);
  settings.append(
    makeSlider(model, "show", "top_k", numbers, (value) => `${value}`),
    makeSlider(
      model,
      "way from before to after",
      "share",
      constants.shares,
      (value) => `${Math.round(100 * value)} %`,
    ),
  );
  if (constants.rescores) settings.append(checkbox("rescored (NNN)", "rescored"));
  let waiting = false; // whether this view has sent a request; there may be other views
  function request(message) {
    waiting = true;
    model.send(message);
  }
  const save = () => request({ kind: "table" });
  settings.append(make("button", { type: "button", class: "plain", onclick: save }, "Save as CSV"));

  const status = make("p", { role: "status", "aria-live": "polite" });
  const asked = make("div", { class: "asked" });
  const lists = Object.fromEntries(
    ["before", "after"].map((row) => [row, make("ol", { "aria-labelledby": `${constants.id}-${row}` })]),
  );
  const titles = Object.fromEntries(
    ["before", "after"].map((row) => [row, make("h4", { id: `${constants.id}-${row}` })]),
  );
  const lines = makeSvg("svg", { "aria-hidden": "true", class: "lines" });
  const rows = make(
    "div",
    { class: "rows", onkeydown: moveFocus },
    lines,
    ...["before", "after"].flatMap((row) => [titles[row], lists[row]]),
  );
  const root = makeRoot(
    "dclip-gallery",
    make(
      "div",
      { class: "row", role: "search" },
      query,
      make("button", { type: "button", class: "plain", onclick: ask }, "Search"),
      own,
      examples,
    ),
    ...(constants.outcomes.length ? [walk] : []),
    settings,
    make("div", { class: "said" }, asked, status),
    rows,
  );
  if (constants.takes_pictures) takePictures(model, root, own, status, constants.most_bytes);

  // A picture, opened

  const large = make("img", { alt: "" });
  const file = make("p");
  const dialog = make(
    "dialog",
    { "aria-label": "a picture that was found", onclick: (event) => event.target === dialog && dialog.close() },
    make("button", { type: "button", class: "plain", onclick: () => dialog.close() }, "Close"),
    file,
    large,
  );
  dialog.addEventListener("close", () => URL.revokeObjectURL(large.src));
  root.append(dialog);
  const open = (picture) => request({ kind: "open", picture: Number(picture) });

  function receive(message, buffers) {
    if (!waiting) return;
    waiting = false;
    if (message.kind === "opened") {
      large.src = makeUrl(buffers[0]);
      file.textContent = message.file;
      dialog.showModal();
    } else if (message.kind === "table") {
      const href = URL.createObjectURL(new Blob([message.text], { type: "text/csv" }));
      make("a", { href, download: "found.csv" }).click();
      URL.revokeObjectURL(href);
    }
  }

  // Results

  function showThumbnails() {
    for (const url of urls.values()) URL.revokeObjectURL(url);
    urls = new Map();
    let start = 0;
    for (const [picture, size] of model.get("_sizes")) {
      urls.set(picture, makeUrl(model.get("_thumbnails"), start, size));
      start += size;
    }
  }

  function sayMove({ rank, other_rank: other }, row) {
    const number = other.toLocaleString("en");
    if (row === "before") return other === rank ? "stays" : `${other < rank ? "rises" : "falls"} to ${number}`;
    return other === rank ? "as before" : `${other > rank ? "up" : "down"} from ${number}`;
  }

  function makeHit(hit, row) {
    const title = `picture ${hit.image}`;
    const note = [hit.right && "✓ the answer", hit.note].filter(Boolean).join(", ");
    const moved = sayMove(hit, row);
    const label = [`rank ${hit.rank}`, title, `score ${hit.score.toFixed(2)}`, moved, note];
    const image = make("img", { src: urls.get(hit.image), alt: "", draggable: "false" });
    const button = make(
      "button",
      {
        type: "button",
        class: hit.right ? "hit right" : "hit",
        tabindex: row === "before" && hit.rank === 1 ? 0 : -1,
        "aria-label": label.filter(Boolean).join(", "),
        "data-picture": hit.image,
        title: `search with ${hit.file}; the key o opens it`,
        onclick: () => set(model, { picture: hit.image, query: "" }),
        onmouseenter: () => light(hit.image, true),
        onmouseleave: () => light(hit.image, false),
        onfocus: () => light(hit.image, true),
        onblur: () => light(hit.image, false),
      },
      make("span", { class: "frame" }, image, makeSvg("svg", { class: "boxes", viewBox: "0 0 1 1" })),
      make("span", { class: "score" }, make("b", {}, `${hit.rank}`), ` · ${hit.score.toFixed(2)}`),
      make("span", { class: "moved" }, moved),
      make("span", { class: "note" }, note),
    );
    const opens = { type: "button", class: "plain open", tabindex: -1, "aria-label": `open ${title}` };
    return make("li", {}, button, make("button", { ...opens, onclick: () => open(hit.image) }, "⤢"));
  }

  function show() {
    const had = document.activeElement?.closest?.(".hit") && root.contains(document.activeElement);
    showThumbnails();
    const results = model.get("results");
    rows.style.setProperty("--count", model.get("top_k"));
    for (const [row, name] of [["before", constants.names[0]], ["after", constants.names[1]]]) {
      const share = row === "after" ? `, ${Math.round(100 * model.get("share"))} %` : "";
      titles[row].textContent = `${row}: ${name}${share}`;
      lists[row].replaceChildren(...results[row].map((hit) => makeHit(hit, row)));
    }
    asked.replaceChildren();
    const picture = urls.get(-1);
    if (picture) asked.append(make("img", { src: picture, alt: "the picture that is asked with" }));
    status.textContent = model.get("message");
    requestAnimationFrame(drawLines);
    if (had) rows.querySelector(".hit")?.focus();
  }

  function drawLines() {
    const frame = rows.getBoundingClientRect();
    if (!frame.width) return; // hidden, as while JupyterLab changes its theme
    lines.replaceChildren();
    lines.setAttribute("width", 0); // otherwise it would keep the rows at their old size
    lines.setAttribute("height", 0);
    const find = (row) =>
      new Map([...lists[row].querySelectorAll(".hit")].map((hit) => [hit.dataset.picture, hit]));
    const [before, after] = [find("before"), find("after")];
    for (const [picture, upper] of before) {
      const lower = after.get(picture);
      if (!lower) continue;
      const [a, b] = [upper, lower].map((each) => each.getBoundingClientRect());
      const x = (box) => box.left + box.width / 2 - frame.left + rows.scrollLeft;
      lines.append(
        makeSvg("line", {
          x1: x(a),
          y1: a.bottom - frame.top,
          x2: x(b),
          y2: b.top - frame.top,
          "data-picture": picture,
          class: upper.classList.contains("right") ? "right" : "",
        }),
      );
    }
    lines.setAttribute("width", rows.scrollWidth);
    lines.setAttribute("height", rows.scrollHeight);
  }

  // Highlights a picture with the mouse or the focus in both rows, and shows its boxes.
  function light(picture, on) {
    for (const each of root.querySelectorAll(`[data-picture="${picture}"]`)) {
      each.classList.toggle("lit", on);
    }
    if (on && constants.has_boxes) {
      if (model.get("_boxes")[picture]) showBoxes();
      else model.send({ kind: "boxes", picture });
    }
  }

  function showBoxes() {
    const boxes = model.get("_boxes");
    for (const hit of root.querySelectorAll(".hit.lit")) {
      const svg = hit.querySelector(".boxes");
      const detections = boxes[hit.dataset.picture];
      if (!detections || svg.childElementCount) continue;
      const { width, height } = detections;
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      for (const [left, top, right, bottom, label, color] of detections.boxes) {
        const box = { x: left, y: top, width: right - left, height: bottom - top, stroke: color };
        const title = document.createElementNS(SVG, "title");
        title.textContent = label;
        svg.appendChild(makeSvg("rect", box)).append(title);
      }
      hit.querySelector(".note").textContent ||= detections.boxes.map((box) => box[4]).join(", ");
    }
  }

  function moveFocus(event) {
    const hit = event.target.closest(".hit");
    if (!hit) return;
    if (event.key === "Escape") {
      query.focus();
      event.preventDefault();
      return;
    }
    if (event.key === "o") open(hit.dataset.picture);
    const [before, after] = ["before", "after"].map((row) => [...lists[row].querySelectorAll(".hit")]);
    const row = before.includes(hit) ? before : after;
    const at = row.indexOf(hit);
    const next = {
      ArrowRight: row[at + 1],
      ArrowLeft: row[at - 1],
      ArrowDown: after[Math.min(at, after.length - 1)],
      ArrowUp: before[Math.min(at, before.length - 1)],
      Home: row[0],
      End: row[row.length - 1],
    }[event.key];
    if (!next) return;
    for (const each of [...before, ...after]) each.tabIndex = each === next ? 0 : -1;
    next.focus();
    event.preventDefault();
  }

  function showPlace() {
    const [count, at] = [model.get("matching"), model.get("position")];
    const all = count.toLocaleString("en");
    place.textContent = !count ? "none" : at < 0 ? all : `${(at + 1).toLocaleString("en")} of ${all}`;
  }

  model.on("change:results", show);
  model.on("change:message", () => (status.textContent = model.get("message")));
  model.on("change:_boxes", showBoxes);
  model.on("msg:custom", receive);
  const watching = new ResizeObserver(() => requestAnimationFrame(drawLines));
  watching.observe(rows);
  el.append(root);
  show();
  followTraits(model, ["query"], () => (query.value = model.get("query")));
  followTraits(model, ["matching", "position"], showPlace);
  return () => {
    watching.disconnect();
    for (const url of urls.values()) URL.revokeObjectURL(url);
  };
}

export default { render };
