"use strict";
/* Images and classes: their lists, the page of an image with its occlusion map, the page of a class. */

(() => {
  const { load, element, tile, scaleOf, bdi, counted, number, percent, facts } = zfscopeAtlas;

  /* Of black to yellow by way of blue and red, as lightness rises: 0 to 1 as a colour. */
  const RAMP = [[13, 8, 60], [84, 16, 120], [160, 40, 110], [222, 84, 64], [250, 160, 40], [250, 245, 170]];
  function colour(share) {
    const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1), low = Math.min(Math.floor(place), RAMP.length - 2);
    const mixed = RAMP[low].map((level, channel) => Math.round(level + (place - low) * (RAMP[low + 1][channel] - level)));
    return `rgb(${mixed.join(" ")})`;
  }
  const ofClass = (position) => `hsl(${(position * 137.5 + 25) % 360} 55% ${position % 2 ? 45 : 60}%)`;

  const classAddress = (index, label) => (index.classes.indexOf(index.classes[label]) === label
    ? `#class/${encodeURIComponent(index.classes[label])}` : `#class/${label}`);

  /* The small image at a place of the list. */
  function thumb(index, place, side) {
    const { sheet, across } = index.thumbs;
    return tile(`sprites/images/${Math.floor(place / sheet)}.webp`, place % sheet, across, index.thumbs, side);
  }

  /* A small image with a box of its pixels drawn on it. */
  function framed(index, place, [x0, y0, x1, y1], side) {
    const picture = thumb(index, place, side), scale = scaleOf(index.thumbs, side);
    const across = (index.thumbs.width * scale) / index.thumbs.imageWidth, down = (index.thumbs.height * scale) / index.thumbs.imageHeight;
    const box = element("span", { class: "box" });
    const left = Math.max(0, x0) * across, top = Math.max(0, y0) * down;
    box.style.left = `${left}px`;
    box.style.top = `${top}px`;
    box.style.width = `${Math.max(5, Math.min(index.thumbs.imageWidth, x1) * across - left)}px`;
    box.style.height = `${Math.max(5, Math.min(index.thumbs.imageHeight, y1) * down - top)}px`;
    return element("span", { class: "framed", "aria-hidden": "true" }, picture, box);
  }

  const labelsOf = (index, image) => image.labels.map((label) => zfscopeAtlas.className(index, label)).join(", ");

  function card(index, image, place) {
    const labels = labelsOf(index, image);
    const wins = counted(image.wins.length, "map");
    return element("li", {}, element("a", { href: `#image/${image.index}` }, thumb(index, place, 86),
      labels ? bdi(labels) : null, element("small", { text: `${image.index} · ${wins}` })));
  }

  /* Cards of these images; they fill when the list is there. */
  function imageCards(index, chosen) {
    const list = element("ul", { class: "cards" });
    load("images").then((listed) => {
      const places = new Map(listed.map((image, place) => [image.index, place]));
      list.append(...chosen.filter((one) => places.has(one)).map((one) => card(index, listed[places.get(one)], places.get(one))));
    });
    return list;
  }

  async function imagesPage(index) {
    const listed = await load("images"), own = new Set(index.pages);
    const others = listed.filter((image) => !own.has(image.index)).map((image) => image.index);
    return {
      title: "Images",
      body: [
        element("h1", {}, "Images", element("small", { text: index.images })),
        index.pages.length ? element("h2", {}, "With occlusion map and strongest maps", element("small", { text: String(index.pages.length) })) : null,
        index.pages.length ? imageCards(index, index.pages) : null,
        element("h2", {}, "Others that are among the strongest of a map", element("small", { text: others.length.toLocaleString("en") })),
        imageCards(index, others),
      ],
      up: "#",
    };
  }

  async function imagePage(index, wanted) {
    const listed = await load("images");
    const place = listed.findIndex((image) => image.index === wanted), image = listed[place];
    if (!image) return null;
    const order = index.pages.includes(wanted) ? index.pages : listed.map((one) => one.index).filter((one) => !index.pages.includes(one));
    const at = order.indexOf(wanted);
    const body = [
      element("h1", {}, `Image ${wanted}`, image.labels.length ? element("small", {}, bdi(labelsOf(index, image))) : null),
    ];
    if (index.pages.includes(wanted)) {
      const looked = await load(`image-${wanted}`);
      body.push(answered(index, image, looked), covers(index, image, looked), strongest(index, image, looked));
    } else {
      body.push(facts(aboutImage(index, image)), element("div", { class: "row alone" }, thumb(index, place, 128)));
    }
    body.push(await won(index, image));
    return { title: `Image ${wanted}`, body, previous: at > 0 ? `#image/${order[at - 1]}` : null, next: at + 1 < order.length ? `#image/${order[at + 1]}` : null, up: "#images" };
  }

  function aboutImage(index, image) {
    return [
      image.labels.length ? ["class", element("span", {}, image.labels.map((label, rank) => [rank ? ", " : "", element("a", { href: classAddress(index, label) }, bdi(zfscopeAtlas.className(index, label)))]))] : null,
      ["name", bdi(image.name)],
      ["among the strongest of", counted(image.wins.length, "map")],
    ];
  }

  const answerName = (index, label) => (index.answers[label] === undefined ? `class ${label}` : index.answers[label]);

  function answered(index, image, looked) {
    const best = looked.answers.slice(0, 3).map(([label, share]) => `${answerName(index, label)} ${percent(share)}`).join(", ");
    return facts([...aboutImage(index, image), best ? ["the network says", bdi(best)] : null]);
  }

  function covers(index, image, looked) {
    const map = looked.occlusion;
    const picture = element("img", { src: `sprites/pages/${image.index}.webp`, alt: `Image ${image.index}`, width: looked.width, height: looked.height });
    const scene = element("div", { class: "scene" }, picture);
    if (!map) return element("div", { class: "covers" }, element("figure", {}, scene));
    const rows = map.probability.length, columns = map.probability[0].length;
    const square = element("span", { class: "square", hidden: true });
    scene.append(square);
    const imageWidth = index.thumbs.imageWidth, imageHeight = index.thumbs.imageHeight;
    const target = answerName(index, map.target);
    const read = element("p", { class: "read", "aria-live": "polite" });
    const least = Math.min(map.whole, ...map.probability.flat()), most = Math.max(map.whole, ...map.probability.flat());
    const shareOf = (value) => (most > least ? (value - least) / (most - least) : 1);
    const present = [...new Set(map.label.flat())].sort((one, other) => one - other);
    const heat = grid((row, column) => colour(shareOf(map.probability[row][column])), `Probability of ${target} by place of the square`);
    const classes = grid((row, column) => ofClass(present.indexOf(map.label[row][column])), "Most probable class by place of the square");
    const all = [heat, classes];
    let here = null;

    function grid(paint, label) {
      const made = element("div", { class: "heat", tabindex: "0", role: "application", "aria-label": `${label}; arrow keys move the square` });
      made.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
      made.style.aspectRatio = `${imageWidth} / ${imageHeight}`;
      for (let cell = 0; cell < rows * columns; cell += 1) {
        const one = document.createElement("i");
        one.style.background = paint(Math.floor(cell / columns), cell % columns);
        made.append(one);
      }
      return made;
    }

    function show(row, column) {
      here = [Math.min(Math.max(row, 0), rows - 1), Math.min(Math.max(column, 0), columns - 1)];
      const [top, left] = here.map((step) => step * map.stride), cell = here[0] * columns + here[1];
      for (const one of all) {
        one.querySelector(".here")?.classList.remove("here");
        one.children[cell].classList.add("here");
      }
      square.hidden = false;
      square.style.left = `${(100 * left) / imageWidth}%`;
      square.style.top = `${(100 * top) / imageHeight}%`;
      square.style.width = `${(100 * Math.min(map.size, imageWidth - left)) / imageWidth}%`;
      square.style.height = `${(100 * Math.min(map.size, imageHeight - top)) / imageHeight}%`;
      const share = map.probability[here[0]][here[1]], label = map.label[here[0]][here[1]];
      read.replaceChildren(element("b", {}, bdi(target), ` ${percent(share)}`), ` instead of ${percent(map.whole)}; most probable: `,
        element("b", {}, bdi(answerName(index, label))), element("br"),
        element("span", { class: "quiet", text: `square at x ${left}, y ${top}` }));
    }

    function hide() {
      here = null;
      square.hidden = true;
      for (const one of all) one.querySelector(".here")?.classList.remove("here");
      read.replaceChildren(element("b", {}, bdi(target), ` ${percent(map.whole)}`), " of the whole image", element("br"),
        element("span", { class: "quiet", text: "Move over a picture, or use the arrow keys in a map: a grey square covers that place." }));
    }

    /* Where the pointer is, the square's middle goes. */
    scene.addEventListener("pointermove", (event) => {
      const frame = scene.getBoundingClientRect();
      const x = ((event.clientX - frame.left) / frame.width) * imageWidth, y = ((event.clientY - frame.top) / frame.height) * imageHeight;
      show(Math.round((y - map.size / 2) / map.stride), Math.round((x - map.size / 2) / map.stride));
    });
    for (const one of all) {
      one.addEventListener("pointermove", (event) => {
        const frame = one.getBoundingClientRect();
        show(Math.floor(((event.clientY - frame.top) / frame.height) * rows), Math.floor(((event.clientX - frame.left) / frame.width) * columns));
      });
      one.addEventListener("keydown", (event) => {
        const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
        if (!step) return;
        event.preventDefault();
        event.stopPropagation();
        const [row, column] = here || [Math.floor(rows / 2), Math.floor(columns / 2)];
        show(row + (here ? step[0] : 0), column + (here ? step[1] : 0));
      });
    }
    for (const one of [scene, ...all]) one.addEventListener("pointerleave", hide);
    hide();

    const scale = element("span", { class: "scale", "aria-hidden": "true" }, Array.from({ length: 12 }, (_, step) => {
      const part = element("i");
      part.style.background = colour(step / 11);
      return part;
    }));
    const keys = present.slice(0, 8).map((label) => {
      const part = element("i", { "aria-hidden": "true" });
      part.style.background = ofClass(present.indexOf(label));
      return element("span", { class: "key" }, part, bdi(answerName(index, label)));
    });
    const rest = present.length > 8 ? `and ${present.length - 8} more` : null;
    return [
      element("h2", {}, "Occlusion", element("small", { text: `a grey square of ${map.size} px, step ${map.stride} px` })),
      read,
      element("div", { class: "covers" },
        element("figure", {}, scene, element("figcaption", { text: "The image" })),
        element("figure", {}, heat, element("figcaption", {}, "Probability of ", bdi(target)),
          element("div", { class: "legend" }, percent(least), scale, percent(most))),
        element("figure", {}, classes, element("figcaption", { text: "Most probable class" }), element("div", { class: "legend" }, keys, rest))),
    ];
  }

  function strongest(index, image, looked) {
    const places = Object.keys(looked.layers).map(Number).sort((one, other) => other - one);
    if (!places.length) return null;
    return [
      element("h2", {}, "Strongest maps", element("small", { text: "projection above, patch below" })),
      places.map((place) => {
        const layer = index.layers[place], { maps, values } = looked.layers[place];
        const sheet = `sprites/pages/${image.index}-${place}.webp`;
        return element("section", { class: "strip" }, element("h3", {}, element("a", { href: `#${layer.address}` }, bdi(layer.name))),
          element("ul", { class: "cards" }, maps.map((map, rank) => element("li", {}, element("a", { href: `#${layer.address}/${map}` },
            tile(sheet, rank, maps.length, layer.tile, 86), tile(sheet, maps.length + rank, maps.length, layer.tile, 86),
            element("b", { text: `map ${map}` }), element("small", { text: number(values[rank]) }))))));
      }),
    ];
  }

  /* The maps that an image is among the strongest of. */
  async function won(index, image) {
    if (!image.wins.length) return element("p", { class: "quiet", text: "This image is not among the strongest of any map." });
    const places = [...new Set(image.wins.map(([place]) => place))].sort((one, other) => other - one);
    const data = await Promise.all(places.map((place) => load(`layer-${place}`)));
    return [
      element("h2", {}, "Maps that it wins", element("small", { text: `it is among the ${index.top} strongest of ${counted(image.wins.length, "map")}` })),
      places.map((place, row) => {
        const layer = index.layers[place];
        return element("section", { class: "strip" }, element("h3", {}, element("a", { href: `#${layer.address}` }, bdi(layer.name))),
          element("ul", { class: "cards" }, image.wins.filter(([own]) => own === place).map(([, map, rank]) => {
            const one = data[row].maps[map], count = one.values.length;
            return element("li", {}, element("a", { href: `#${layer.address}/${map}` },
              zfscopeAtlas.winner(layer, map, count, rank, 0, 86), zfscopeAtlas.winner(layer, map, count, rank, 1, 86),
              element("b", { text: `map ${map}` }), element("small", { text: `number ${rank + 1}` })));
          })));
      }),
    ];
  }

  async function classesPage(index) {
    const all = await load("classes"), place = index.layers.length - 1, layer = index.layers[place];
    return {
      title: "Classes",
      body: [
        element("h1", {}, "Classes", element("small", { text: String(all.length) })),
        element("p", { class: "quiet" }, "Of each class the maps of ", bdi(layer.name), " that its images are most often among the strongest of."),
        all.map((one, label) => element("section", { class: "strip class-row" },
          element("div", {}, element("h2", {}, element("a", { href: classAddress(index, label) }, bdi(one.name))),
            element("small", { class: "quiet", text: counted(one.total, "image") })),
          element("div", { class: "row" }, (one.maps[place] || []).map(([map, count]) => element("a", {
            href: `#${layer.address}/${map}`, "aria-label": `map ${map}, ${count} of its winners`, title: `map ${map}: ${count} of its winners`,
          }, zfscopeAtlas.best(layer, map, 0, 72)))))),
      ],
      up: "#",
    };
  }

  async function classPage(index, label) {
    const all = await load("classes"), one = all[label];
    if (!one) return null;
    const own = new Set(one.images), listed = await load("images");
    const images = listed.filter((image) => own.has(image.index) || (image.labels.includes(label) && index.pages.includes(image.index))).map((image) => image.index);
    const places = Object.keys(one.maps).map(Number).sort((first, second) => second - first);
    const data = await Promise.all(places.map((place) => load(`layer-${place}`)));
    return {
      title: one.name,
      body: [
        element("h1", {}, bdi(one.name)),
        facts([["images", one.total.toLocaleString("en")], ["among the strongest of a map", one.images.length.toLocaleString("en")]]),
        element("h2", {}, "Its most active maps", element("small", { text: `how many of a map's ${index.top} winners are of this class` })),
        places.map((place, row) => {
          const layer = index.layers[place];
          return element("section", { class: "strip" }, element("h3", {}, element("a", { href: `#${layer.address}` }, bdi(layer.name))),
            element("ul", { class: "cards" }, one.maps[place].map(([map, count]) => element("li", {}, element("a", { href: `#${layer.address}/${map}` },
              zfscopeAtlas.winner(layer, map, data[row].maps[map].values.length, 0, 0, 86),
              element("b", { text: `map ${map}` }), element("small", { text: `${count} of ${data[row].maps[map].values.length}` }))))));
        }),
        element("h2", {}, "Its images", element("small", { text: images.length.toLocaleString("en") })),
        imageCards(index, images),
      ],
      previous: label > 0 ? classAddress(index, label - 1) : null,
      next: label + 1 < all.length ? classAddress(index, label + 1) : null,
      up: "#classes",
    };
  }

  Object.assign(zfscopeAtlas, { classAddress, framed, imageCards, imagesPage, imagePage, classesPage, classPage });
})();
