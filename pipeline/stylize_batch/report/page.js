"use strict";

// The cards, charts and tables are in the page already; this shows pictures when they come near, filters and orders the
// cards, sorts tables and opens a pair. Names and labels only ever become text, never markup.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const pairs = read("pair-data");
  const images = read("image-data");
  const LOSSES = [["content_loss", "Content loss"], ["style_loss", "Style loss"], ["content_distance", "Content distance"]];
  const FIRST = 24;

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // Pictures

  const source = (place) => `data:image/webp;base64,${images[place]}`;
  const load = (image) => {
    image.src = source(image.dataset.image);
    near.unobserve(image);
  };
  const near = new IntersectionObserver(
    (entries) => entries.filter((each) => each.isIntersecting).forEach((each) => load(each.target)),
    { rootMargin: "600px" },
  );
  const pictures = [...document.querySelectorAll("img[data-image]")];
  pictures.forEach((image) => near.observe(image));
  addEventListener("beforeprint", () => pictures.filter((image) => !image.src).forEach(load));

  // The grid

  const grid = document.getElementById("grid");
  const form = document.getElementById("filters");
  const more = document.getElementById("more");
  let shown = pairs.map((_, place) => place);

  if (grid) {
    const cards = [...grid.children];
    const texts = pairs.map((pair) =>
      [pair.id, pair.content.uri, ...Object.values(pair.columns), pair.kind, pair.reason].join("\n").toLowerCase(),
    );
    let all = false;

    const matches = (pair, place) => {
      const words = form.elements.text.value.toLowerCase().split(/\s+/);
      const status = form.elements.status?.value;
      return (
        words.every((word) => texts[place].includes(word)) &&
        (!status || pair.status === status) &&
        [...form.querySelectorAll("select[data-column]")].every(
          (select) => !select.value || select.value === `=${pair.columns[select.dataset.column] ?? ""}`,
        )
      );
    };

    const ordered = (places) => {
      const [, sign, key] = form.elements.order.value.match(/^(-?)(.*)$/);
      const direction = sign ? -1 : 1;
      const value = (place) => pairs[place].losses[key];
      // Without a loss, at the end in either direction.
      return key
        ? places.sort((a, b) => (value(a) === null) - (value(b) === null) || direction * (value(a) - value(b)) || a - b)
        : places;
    };

    const update = () => {
      shown = ordered(pairs.map((_, place) => place).filter((place) => matches(pairs[place], place)));
      cards.forEach((card) => (card.hidden = true));
      shown.forEach((place, position) => {
        cards[place].hidden = !all && position >= FIRST;
        grid.append(cards[place]);
      });
      more.hidden = all || shown.length <= FIRST;
      more.textContent = `Show all ${shown.length}`;
      const count = shown.length === pairs.length ? `${pairs.length}` : `${shown.length} of ${pairs.length}`;
      document.getElementById("shown").textContent = shown.length ? `${count} pair${pairs.length === 1 ? "" : "s"}` : "No pair matches";
    };

    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", update);
    form.addEventListener("change", update); // all that some programs which fill in forms send
    form.addEventListener("reset", () => setTimeout(update));
    more.addEventListener("click", () => {
      all = true;
      const next = cards[shown[FIRST]];
      update();
      next?.querySelector("button").focus();
    });
    update();
  }

  // One pair, large

  const viewer = document.getElementById("viewer");
  let open = 0;

  const figure = (image, title, name) => {
    const picture = image.image === null ? "" : make("img", { src: source(image.image), alt: `${title}: ${image.name}` });
    const caption = make("figcaption", {}, make("b", { textContent: title }));
    if (image.link) {
      caption.append(make("a", { href: image.link, target: "_blank", rel: "noopener noreferrer", textContent: "Full image" }));
    }
    caption.append(make("code", { textContent: image.uri }));
    if (image.problem) caption.append(make("span", { className: "bad", textContent: image.problem }));
    return make("figure", { className: name }, picture, caption);
  };

  const show = (place) => {
    open = place;
    const pair = pairs[place];
    const styles = pair.styles.map((style) => style.name).join(" + ");
    document.getElementById("viewer-names").textContent = styles ? `${pair.content.name} × ${styles}` : pair.content.name;
    const large = document.getElementById("viewer-pictures");
    large.replaceChildren(
      pair.output
        ? figure(pair.output, "Picture", "output")
        : make("p", { className: "output error" }, make("b", { textContent: pair.kind }), ` ${pair.reason ?? ""}`),
      figure(pair.content, "Photograph", "source"),
      ...pair.styles.map((style) => figure(style, "Style", "source")),
    );
    const facts = [
      ["Status", pair.status],
      ...LOSSES.filter(([key]) => pair.losses[key] !== null).map(([key, name]) => [name, pair.losses[key].toPrecision(5)]),
      ["Size", pair.size && pair.size.join(" × ")],
      ["Further styles", pair.more.join("\n")],
      ...Object.entries(pair.columns).filter(([name]) => name !== "style"),
      ["Pair", pair.id],
    ];
    document.getElementById("viewer-data").replaceChildren(
      ...facts
        .filter(([, value]) => value)
        .map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }))),
    );
    viewer.scrollTop = 0;
    if (!viewer.open) viewer.showModal();
  };
  const step = (by) => {
    const position = shown.indexOf(open);
    const place = shown[position + by];
    if (position >= 0 && place !== undefined) show(place);
  };

  document.querySelectorAll("button[data-pair]").forEach((button) => {
    button.addEventListener("click", () => show(Number(button.dataset.pair)));
  });
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  document.getElementById("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });

  // Tables

  document.querySelectorAll("table").forEach((table) => {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const number = head.classList.contains("number");
      const value = (row) => (number ? Number(row.cells[column].dataset.value) : row.cells[column].textContent.trim());
      head.querySelector("button").addEventListener("click", () => {
        // Numbers begin with the largest, names with the first.
        const rising = head.ariaSort === "none" ? !number : head.ariaSort === "descending";
        const compare = number
          ? (a, b) => Number.isNaN(value(a)) - Number.isNaN(value(b)) || (rising ? 1 : -1) * (value(a) - value(b))
          : (a, b) => (rising ? 1 : -1) * value(a).localeCompare(value(b), undefined, { numeric: true });
        body.append(...[...body.rows].sort(compare));
        heads.forEach((each) => (each.ariaSort = each === head ? (rising ? "ascending" : "descending") : "none"));
      });
    });
  });
})();
