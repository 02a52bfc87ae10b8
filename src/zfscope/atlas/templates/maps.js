"use strict";
/* The front page, the page of a layer and that of a feature map. */

(() => {
  const { load, element, svg, tile, bdi, counted, number, percent, facts } = zfscopeAtlas;
  const ACROSS = 32, PAIRS = 64;

  const size = (layer) => `${layer.height}×${layer.width}`;

  /* The strongest winner of a map: its projection (kind 0) or its patch (kind 1). */
  function best(layer, map, kind, side) {
    return tile(`${layer.place}/all-${Math.floor(map / PAIRS)}.webp`, 2 * (map % PAIRS) + kind, 16, layer.tile, side);
  }

  /* Tile of a winner, from the sheet of its map alone. */
  function winner(layer, map, won, rank, kind, side, label) {
    return tile(`${layer.place}/${map}.webp`, kind * won + rank, Math.min(ACROSS, won), layer.tile, side, label);
  }

  /* A stack of planes: their side grows with the maps' size, their number with that of the maps. */
  function stack(layer, largest) {
    const side = 16 + 56 * Math.sqrt(Math.max(layer.width, layer.height) / largest);
    const planes = Math.max(1, Math.min(9, Math.round(Math.log2(layer.count)))), step = 3.5;
    const whole = side + step * (planes - 1);
    const rects = [];
    for (let plane = planes - 1; plane >= 0; plane -= 1) {
      rects.push(svg("rect", {
        x: step * plane + 0.5, y: step * (planes - 1 - plane) + 0.5, width: side, height: side, rx: 2, class: plane ? "" : "front",
      }));
    }
    return svg("svg", { width: whole + 1, height: whole + 1, "aria-hidden": "true" }, ...rects);
  }

  function front(index) {
    const largest = Math.max(index.thumbs.imageWidth, index.thumbs.imageHeight);
    const input = { width: index.thumbs.imageWidth, height: index.thumbs.imageHeight, count: 1 };
    const chain = element("ol", { class: "chain" },
      element("li", {}, element("div", { class: "input" },
        element("div", { class: "picture" }, stack(input, largest)),
        element("b", { text: "input" }), element("span", { text: `${size(input)} px` }), element("span", { text: index.images }))),
      index.layers.map((layer) => element("li", {}, element("a", { href: `#${layer.address}` },
        element("div", { class: "picture" }, stack(layer, largest)),
        element("b", {}, bdi(layer.name)),
        element("span", { text: `${counted(layer.count, "map")} of ${size(layer)}` }),
        layer.filters ? element("span", { text: layer.filters.replace(/^\d+ of (\d+)x(\d+) \/ (\d+)$/, "filters $1×$2, step $3") }) : null,
        element("span", { text: `sees ${layer.field} px, step ${layer.stride}` }),
        element("span", { class: layer.dead ? "bad" : "", text: layer.dead ? `${layer.dead} dead` : "none dead" })))));
    const strips = index.layers.slice().reverse().map((layer) => element("section", { class: "strip" },
      element("h3", {}, element("a", { href: `#${layer.address}` }, bdi(layer.name))),
      element("div", { class: "row" }, layer.strongest.map((map) => element("a", {
        href: `#${layer.address}/${map}`, "aria-label": `${layer.name}, map ${map}`,
      }, best(layer, map, 0, 76))))));
    return {
      title: `Atlas of ${index.title}`,
      body: [
        element("h1", {}, "Atlas of ", bdi(index.title)),
        element("p", { class: "quiet", text: `Every feature map with the ${index.top} images that activate it most, of ${index.images}, and the projections of these activations.` }),
        chain,
        element("h2", {}, "Strongest maps", element("small", { text: "projection of each one's strongest activation" })),
        strips,
        pages(index),
        numbers(index),
      ],
      next: index.layers.length ? `#${index.layers[0].address}` : null,
    };
  }

  function pages(index) {
    if (!index.pages.length) return null;
    const from = index.classes.length ? "taken from each class in turn, at random within it" : "drawn at random";
    return [
      element("h2", {}, "Images", element("small", { text: `${index.pages.length} with occlusion map and strongest maps, ${from} (seed ${index.seed})` })),
      zfscopeAtlas.imageCards(index, index.pages),
    ];
  }

  const CONTROLS = {
    other_map: "another map",
    other_map_place: "another map, magnitudes",
    random_weights: "random weights",
    random_weights_place: "random weights, magnitudes",
  };

  /* Numbers are called LAYER/NAME_correlation. */
  function numbers(index) {
    const of = (layer, name) => index.numbers[`${layer.name}/${name}_correlation`];
    const names = Object.keys(CONTROLS), rows = index.layers.filter((layer) => names.some((name) => of(layer, name) !== undefined));
    if (!rows.length) return null;
    const shown = (value) => (value === undefined || value === null ? "–" : value.toFixed(2).replace(/^-(0\.00)$/, "$1"));
    return [
      element("h2", { text: "Controls" }),
      element("p", { class: "quiet", text: "Mean correlation of a projection with that of another map from the same place of the same image, and with that of random weights. At 1 the map, or the weights, would not matter." }),
      element("div", { class: "scroll" }, element("table", {},
        element("thead", {}, element("tr", {}, element("th", { scope: "col", text: "layer" }), names.map((name) => element("th", { scope: "col", class: "number", text: CONTROLS[name] })))),
        element("tbody", {}, rows.map((layer) => element("tr", {}, element("th", { scope: "row" }, bdi(layer.name)),
          names.map((name) => element("td", { class: "number", text: shown(of(layer, name)) }))))))),
    ];
  }

  const ORDERS = {
    number: ["number", (one, other) => one.map - other.map],
    strength: ["strength", (one, other) => other.strength - one.strength || one.map - other.map],
    class: ["class selectivity", (one, other) => other.selectivity - one.selectivity || other.strength - one.strength || one.map - other.map],
  };

  function className(index, label) {
    return index.classes[label] === undefined ? `class ${label}` : index.classes[label];
  }

  async function layerPage(index, layer, place, sort) {
    const data = await load(`layer-${place}`);
    const order = ORDERS[sort] ? sort : "number";
    const maps = data.maps.map((one, map) => ({ ...one, map, strength: one.values.length ? one.values[0] : -1 }));
    const shown = maps.sort(ORDERS[order][1]);
    const before = index.layers[place - 1], after = index.layers[place + 1];
    return {
      title: layer.name,
      body: [
        element("h1", {}, bdi(layer.name)),
        facts([
          ["feature maps", String(layer.count)],
          ["dead", element("span", { class: layer.dead ? "bad" : "", text: String(layer.dead) })],
          ["size of a map", size(layer)],
          layer.filters ? ["filters", layer.filters] : null,
          ["a unit sees", `${layer.field} px`],
          ["step", `${layer.stride} px`],
          layer.pooled ? ["a pooled unit sees", `${layer.pooled[0]} px, step ${layer.pooled[1]}`] : null,
          ["projected by", layer.rule],
        ]),
        element("div", { class: "sort", role: "group", "aria-label": "Order of the maps" }, element("span", { class: "quiet", text: "Sort by" }),
          Object.entries(ORDERS).filter(([name]) => name !== "class" || index.classes.length).map(([name, [text]]) => element("a", {
            href: name === "number" ? `#${layer.address}` : `#${layer.address}?sort=${name}`, "aria-current": order === name ? "true" : null, text,
          }))),
        element("p", { class: "quiet", text: "Of each map its strongest activation: projection on the left, the patch of the image on the right." }),
        element("ul", { class: "maps" }, shown.map((one) => card(index, layer, one))),
      ],
      previous: before ? `#${before.address}` : "#",
      next: after ? `#${after.address}` : null,
      up: "#",
    };
  }

  function card(index, layer, one) {
    const side = innerWidth < 500 ? 64 : 72;
    const dead = !one.values.length, [label, count] = one.classes[0] || [];
    const text = label === undefined ? "" : `${className(index, label)} ${count}/${one.values.length}`;
    const said = dead ? "dead" : `strongest ${number(one.strength)}${text ? `, ${text}` : ""}`;
    return element("li", {}, element("a", { class: "map", href: `#${layer.address}/${one.map}`, "aria-label": `map ${one.map}, ${said}` },
      element("span", { class: "pair" }, best(layer, one.map, 0, side), best(layer, one.map, 1, side)),
      element("span", { class: "text" }, element("b", { text: String(one.map) }),
        element("span", { class: dead ? "bad" : "", text: dead ? "dead" : number(one.strength) })),
      index.classes.length ? element("span", { class: "class" }, bdi(text)) : null));
  }

  async function mapPage(index, layer, place, map) {
    const data = await load(`layer-${place}`), listed = await load("images");
    const one = data.maps[map];
    if (!one) return null;
    const byIndex = new Map(listed.map((image) => [image.index, image]));
    const won = one.values.length, across = Math.ceil(Math.sqrt(won)) || 1;
    const titled = (rank) => `number ${rank + 1}, ${number(one.values[rank])}, image ${one.images[rank]}`;
    const twins = [];
    const grid = (kind, title, note) => {
      const nine = element("div", { class: "nine" }, one.values.map((_, rank) => {
        const link = element("a", {
          href: `#image/${one.images[rank]}`, "aria-label": `${title} ${titled(rank)}`, title: titled(rank),
          onmouseenter: () => twins[rank].forEach((twin) => twin.classList.add("twin")),
          onmouseleave: () => twins[rank].forEach((twin) => twin.classList.remove("twin")),
        }, winner(layer, map, won, rank, kind, 98));
        (twins[rank] = twins[rank] || []).push(link);
        return link;
      }));
      nine.style.gridTemplateColumns = `repeat(${across}, max-content)`;
      return element("section", {}, element("h2", {}, title, element("small", { text: note })), nine);
    };
    const most = one.classes.length ? one.classes[0][1] : 1;
    const histogram = one.classes.length ? element("section", {}, element("h2", {}, "Classes", element("small", { text: `of the ${won} winners` })),
      element("ul", { class: "bars" }, one.classes.map(([label, count]) => {
        const bar = element("i", { "aria-hidden": "true" });
        bar.style.width = `${(100 * count) / most}%`;
        return element("li", {}, element("a", { href: zfscopeAtlas.classAddress(index, label) }, bdi(className(index, label)), bar, element("b", { text: String(count) })));
      }))) : null;
    const winners = element("ol", { class: "winners" }, one.values.map((value, rank) => {
      const image = byIndex.get(one.images[rank]);
      const labels = image.labels.map((label) => className(index, label)).join(", ");
      const [x0, y0, x1, y1] = one.boxes[rank];
      return element("li", {}, element("a", { href: `#image/${image.index}` },
        zfscopeAtlas.framed(index, listed.indexOf(image), one.boxes[rank], 92),
        element("span", { class: "words" }, element("b", { text: `${rank + 1}. ${number(value)}` }),
          labels ? bdi(labels) : null, element("small", {}, bdi(image.name)),
          element("small", { text: `x ${x0} to ${x1}, y ${y0} to ${y1}` }))));
    }));
    const count = data.maps.length;
    return {
      title: `${layer.name}/${map}`,
      body: [
        element("h1", {}, bdi(layer.name), ` / ${map}`, won ? null : element("small", { class: "bad", text: "dead" })),
        won ? facts([
          ["strongest activation", number(one.values[0])],
          [`number ${won}`, number(one.values[won - 1])],
          one.classes.length ? ["selectivity", `${percent(one.selectivity)} ${className(index, one.classes[0][0])}`] : null,
          ["a unit sees", `${layer.field} px`],
        ]) : element("p", { text: `No image of ${index.images} activates this map: there is nothing to project.` }),
        won ? element("div", { class: "halves" },
          grid(0, "Projections", `by ${layer.rule}`), grid(1, "Patches", "what the unit saw"), histogram) : null,
        won ? [element("h2", {}, "Where in the image", element("small", { text: "the box is what the unit sees" })), winners] : null,
      ],
      previous: map > 0 ? `#${layer.address}/${map - 1}` : null,
      next: map + 1 < count ? `#${layer.address}/${map + 1}` : null,
      up: `#${layer.address}`,
    };
  }

  Object.assign(zfscopeAtlas, { front, layerPage, mapPage, best, winner, className });
})();
