"use strict";
const stored = JSON.parse(document.getElementById("pictures").textContent);
const byName = new Map(stored.pictures.map((picture) => [picture.name, picture]));
const BINS = [[0, 0], [1, 1], [2, 2], [3, 4], [5, 8], [9, 16], [17, 32], [33, 64], [65, 255]];

function viewer(root) {
  const find = (selector) => root.querySelector(selector);
  const stage = find(".stage"), divide = find(".divide");
  const names = { left: root.dataset.left, right: root.dataset.right };

  function cut() { stage.style.setProperty("--cut", divide.value + "%"); }

  function show(side) {
    const picture = byName.get(names[side]), image = find("img." + side);
    image.src = stored.images[picture.image];
    image.alt = picture.label;
    find(".tag-" + side).textContent = picture.label;
  }

  function drag(event) {
    const box = stage.getBoundingClientRect();
    divide.value = Math.round(100 * (event.clientX - box.left) / box.width);
    cut();
  }

  divide.addEventListener("input", cut);
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); drag(event); });
  stage.addEventListener("pointermove", (event) => { if (event.buttons) { drag(event); } });
  cut();
  show("left");
  show("right");
  if (find(".toggle")) { differences(root, names, show); }
}

function differences(root, names, show) {
  const find = (selector) => root.querySelector(selector);
  const canvas = find(".heat"), toggle = find(".toggle"), amplify = find(".amplify");
  let asked = false;
  const on = () => toggle.getAttribute("aria-pressed") === "true";

  async function pixels(side) {
    const image = find("img." + side);
    await image.decode();
    const page = document.createElement("canvas");
    page.width = image.naturalWidth;
    page.height = image.naturalHeight;
    const context = page.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, page.width, page.height);
  }

  async function draw() {
    if (!on()) { return; }
    const [a, b] = await Promise.all([pixels("left"), pixels("right")]);
    const heat = new ImageData(a.width, a.height), counts = new Array(256).fill(0);
    const levels = new Uint8Array(a.width * a.height);
    for (let i = 0; i < levels.length; i++) {
      for (let c = 4 * i; c < 4 * i + 3; c++) { levels[i] = Math.max(levels[i], Math.abs(a.data[c] - b.data[c])); }
      counts[levels[i]] += 1;
    }
    // Unless someone asked for another factor, the largest difference is to be seen.
    if (!asked) { amplify.value = Math.round(Math.log2(255 / Math.max(1, largest(counts)))); }
    const factor = 2 ** Number(amplify.value);
    const colours = counts.map((_, level) => colour(Math.min(1, level * factor / 255)));
    levels.forEach((level, i) => heat.data.set([...colours[level], 255], 4 * i));
    canvas.width = a.width;
    canvas.height = a.height;
    canvas.getContext("2d").putImageData(heat, 0, 0);
    find(".factor").textContent = String(factor);
    say(counts, a.width * a.height);
  }

  function say(counts, total) {
    const most = largest(counts);
    find(".said").textContent = most === 0
      ? "The two pictures are equal in every pixel."
      : `${percent(total - counts[0], total)} of the pixels differ, by ${most} of 255 levels at most. ` +
        `Black is equal; white is ${Math.ceil(255 / 2 ** Number(amplify.value))} levels or more.`;
    const body = find(".histogram tbody");
    body.replaceChildren(...BINS.map(([low, high]) => {
      const count = counts.slice(low, high + 1).reduce((sum, each) => sum + each, 0), share = count / total;
      const row = document.createElement("tr"), bar = document.createElement("span");
      const cells = [low === high ? String(low) : `${low} to ${high}`, count.toLocaleString("en"), ""].map((text) => {
        const cell = document.createElement("td");
        cell.textContent = text;
        row.append(cell);
        return cell;
      });
      const shown = document.createElement("div");
      shown.className = "share";
      bar.className = "bar";
      // Whatever is there at all is to be seen.
      bar.style.width = count ? `max(2px, calc((100% - 5rem) * ${share}))` : "0";
      shown.append(bar, percent(count, total));
      cells[2].append(shown);
      return row;
    }));
  }

  toggle.addEventListener("click", () => {
    const pressed = !on();
    toggle.setAttribute("aria-pressed", String(pressed));
    toggle.textContent = pressed ? "Show pictures" : "Show difference";
    canvas.hidden = !pressed;
    find(".difference").hidden = !pressed;
    find(".stage").classList.toggle("heating", pressed);
    draw();
  });
  amplify.addEventListener("input", () => { asked = true; draw(); });
  for (const side of ["left", "right"]) {
    const pick = find(".pick-" + side);
    pick.value = names[side];
    pick.addEventListener("change", () => { names[side] = pick.value; show(side); draw(); });
  }
}

function largest(counts) { return counts.reduce((seen, count, level) => (count ? level : seen), 0); }

function percent(count, total) {
  const text = (100 * count / total).toFixed(2);
  return count && text === "0.00" ? "< 0.01 %" : `${text} %`;
}

function colour(share) {
  const stops = [[0, 0, 0], [130, 40, 160], [205, 70, 95], [252, 150, 20], [252, 255, 220]];
  const place = share * (stops.length - 1), from = Math.min(stops.length - 2, Math.floor(place));
  return stops[from].map((value, channel) => Math.round(value + (place - from) * (stops[from + 1][channel] - value)));
}

document.querySelectorAll(".viewer").forEach(viewer);
