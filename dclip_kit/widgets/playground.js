// The page's half of ZeroShotPlayground.

const MOST = 8; // classes to list as forgotten, and as learned

function render({ model, el }) {
  const constants = model.get("_told");
  let url = "";
  const percent = (share) => `${Math.round(100 * share)} %`;

  const classes = make("input", {
    type: "search",
    "aria-label": "class names, with commas between them",
    placeholder: "cat, dog, teapot …, then press Enter",
    onkeydown: (event) => event.key === "Enter" && ask(),
  });
  function ask() {
    const names = classes.value.split(",").map((name) => name.trim()).filter(Boolean);
    if (names.length) set(model, { classes: names });
  }
  followTraits(model, ["classes"], () => (classes.value = model.get("classes").join(", ")));
  const own = make("span");
  const image = make("img", { alt: "the picture that is named" });
  const status = make("p", { role: "status", "aria-live": "polite" });
  const lists = Object.fromEntries(
    ["before", "after"].map((row) => [row, make("ol", { "aria-label": row })]),
  );
  const titles = Object.fromEntries(["before", "after"].map((row) => [row, make("h4")]));
  const figure = makeSvg("svg", { viewBox: "0 0 240 170", role: "img", class: "curve" });
  const changed = make("div", { class: "changed" });
  const root = makeRoot(
    "dclip-playground",
    make(
      "div",
      { class: "row" },
      classes,
      make("button", { type: "button", class: "plain", onclick: ask }, "Name it"),
    ),
    make(
      "div",
      { class: "row" },
      ...makeNumber(model, "picture", constants.pictures, (picture) => set(model, { picture })),
      own,
      makeSlider(model, "way from before to after", "share", constants.shares, percent),
    ),
    make(
      "div",
      { class: "both" },
      make("div", { class: "frame" }, image),
      ...["before", "after"].map((row) => make("div", { class: "answers" }, titles[row], lists[row])),
      make("div", { class: "frame" }, figure),
    ),
    status,
    changed,
  );
  takePictures(model, root, own, status, constants.most_bytes);

  function show() {
    const answers = model.get("answers");
    ["before", "after"].forEach((row, i) => {
      const share = row === "after" ? `, ${percent(model.get("share"))}` : "";
      titles[row].textContent = `${row}: ${constants.names[i]}${share}`;
      lists[row].replaceChildren(
        ...answers[row].map(([name, probability]) =>
          make(
            "li",
            {},
            make("span", { class: "bar", style: { width: `${100 * probability}%` } }),
            make("span", {}, `${name} ${percent(probability)}`),
          ),
        ),
      );
    });
    status.textContent = model.get("message");
  }

  // Two scales, since forgetting a tenth is much, and gaining a tenth is little.
  function drawCurve() {
    const share = model.get("share");
    const gains = constants.curve.map((point) => point.gain);
    const kept = constants.curve.map((point) => point.retention);
    const [low, high] = [Math.min(0, ...gains), Math.max(0.05, ...gains)];
    const [least, most] = [Math.min(0.95, ...kept), Math.max(1, ...kept)];
    const x = (value) => 40 + (180 * (value - least)) / (most - least);
    const y = (value) => 130 - (110 * (value - low)) / (high - low);
    const path = constants.curve.map((point) => `${x(point.retention)},${y(point.gain)}`).join(" ");
    const write = (text, at) => {
      const label = makeSvg("text", at);
      label.textContent = text;
      return label;
    };
    const now = constants.curve.find((point) => point.share === share);
    const said = `gain ${Math.round(100 * now.gain)} ${constants.gain_unit}, kept ${percent(now.retention)}`;
    figure.setAttribute("aria-label", said);
    figure.replaceChildren(
      makeSvg("line", { x1: 40, y1: y(0), x2: 225, y2: y(0), class: "axis" }),
      makeSvg("polyline", { points: path }),
      ...constants.curve.map((point) =>
        makeSvg("circle", {
          cx: x(point.retention),
          cy: y(point.gain),
          r: point.share === share ? 6 : 3,
          class: point.share === share ? "now" : "",
        }),
      ),
      write(percent(high), { x: 2, y: y(high) + 4 }),
      write(percent(0), { x: 2, y: y(0) + 4 }),
      write(percent(least), { x: 40, y: 148, "text-anchor": "middle" }),
      write(percent(most), { x: 220, y: 148, "text-anchor": "middle" }),
      write("zero-shot accuracy kept", { x: 130, y: 164, "text-anchor": "middle" }),
      write(`gain in R@1; now ${said}`, { x: 2, y: 10 }),
    );
  }

  function showChanges() {
    const changes = model.get("changes");
    const lost = changes.filter((row) => row.after < row.before).slice(0, MOST);
    const won = changes.filter((row) => row.after > row.before).reverse().slice(0, MOST);
    const list = (title, rows) =>
      make(
        "p",
        {},
        `${title}: `,
        ...(rows.length ? rows.map(makeChange) : ["none"]),
      );
    changed.replaceChildren(list("most forgotten", lost), list("most learned", won));
  }

  function makeChange(row) {
    const said = `${row.name} ${percent(row.before)} → ${percent(row.after)}`;
    const look = { type: "button", class: "plain", title: "show one for which the answer changed" };
    return make("button", { ...look, onclick: () => set(model, { picture: row.picture }) }, said);
  }

  followTraits(model, ["_shown"], () => {
    URL.revokeObjectURL(url);
    image.src = url = makeUrl(model.get("_shown"));
  });
  el.append(root);
  followTraits(model, ["answers", "message"], show);
  followTraits(model, ["share"], drawCurve);
  followTraits(model, ["changes"], showChanges);
  return () => URL.revokeObjectURL(url);
}

export default { render };
