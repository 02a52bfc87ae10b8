"use strict";
/* Search over layers, maps, classes and images, as a list below the field. */

(() => {
  const { load, element } = zfscopeAtlas;
  const MOST = 14;
  const field = document.getElementById("query"), list = document.getElementById("found");
  let index = null, images = [], chosen = -1;

  /* What fits a text, the best first: [address, what, kind]. */
  function find(text) {
    const words = text.trim().toLowerCase(), found = [];
    if (!words) return found;
    const at = words.match(/^(.*?)[\s/]+(\d+)$/), alone = /^\d+$/.test(words) ? Number(words) : null;
    for (const layer of index.layers) {
      const names = [layer.name.toLowerCase(), layer.address.toLowerCase()];
      if (at && names.some((name) => name.includes(at[1])) && Number(at[2]) < layer.count) {
        found.push([`#${layer.address}/${Number(at[2])}`, `${layer.name}/${Number(at[2])}`, "map"]);
      }
      if (names.some((name) => name.includes(words))) found.push([`#${layer.address}`, layer.name, "layer"]);
      if (alone !== null && alone < layer.count) found.push([`#${layer.address}/${alone}`, `${layer.name}/${alone}`, "map"]);
    }
    index.classes.forEach((name, label) => {
      if (name.toLowerCase().includes(words)) found.push([zfscopeAtlas.classAddress(index, label), name, "class"]);
    });
    const wanted = at && at[1].trim() === "image" ? Number(at[2]) : alone;
    for (const image of images) {
      if (image.index === wanted) found.unshift([`#image/${image.index}`, `image ${image.index}`, "image"]);
      else if (found.length < MOST && words.length > 1 && image.name.toLowerCase().includes(words)) found.push([`#image/${image.index}`, image.name, "image"]);
    }
    return found.slice(0, MOST);
  }

  function close() {
    list.hidden = true;
    chosen = -1;
    field.setAttribute("aria-expanded", "false");
    field.removeAttribute("aria-activedescendant");
  }

  function choose(place) {
    const options = [...list.querySelectorAll("[data-address]")];
    if (!options.length) return;
    chosen = (place + options.length) % options.length;
    options.forEach((option, number) => option.setAttribute("aria-selected", String(number === chosen)));
    field.setAttribute("aria-activedescendant", options[chosen].id);
    options[chosen].scrollIntoView({ block: "nearest" });
  }

  function go(address) {
    close();
    field.value = "";
    field.blur();
    location.hash = address;
  }

  function update() {
    if (!index) return;
    const found = find(field.value);
    chosen = -1;
    list.replaceChildren(...found.map(([address, what, kind], number) => element("li", {
      role: "option", id: `found-${number}`, "aria-selected": "false", "data-address": address,
      onmousedown: (event) => { event.preventDefault(); go(address); },
    }, element("bdi", { text: what }), element("small", { text: kind }))));
    if (!found.length && field.value.trim()) {
      list.replaceChildren(element("li", { role: "option", "aria-selected": "false", "aria-disabled": "true", text: "Nothing found" }));
    }
    const open = Boolean(field.value.trim());
    list.hidden = !open;
    field.setAttribute("aria-expanded", String(open));
    if (found.length) choose(0);
  }

  field.addEventListener("focus", () => load("images").then((listed) => { images = listed; update(); }));
  field.addEventListener("input", update);
  field.addEventListener("blur", close);
  field.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") choose(chosen + 1);
    else if (event.key === "ArrowUp") choose(chosen - 1);
    else if (event.key === "Escape") { field.value = ""; close(); field.blur(); }
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  document.getElementById("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const option = list.querySelector("[aria-selected=true]");
    if (option && option.dataset.address) go(option.dataset.address);
  });

  zfscopeAtlas.searchIn = (content) => { index = content; };
})();
